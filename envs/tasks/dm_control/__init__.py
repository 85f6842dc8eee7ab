"""Tasks of dm_control's suite, one file each: its models (Apache License 2.0, see LICENSE), resets and rewards.

The package dm_control is not needed. A reward here is a function of observations and action, so that observations have
a few numbers more than dm_control's; they have no forces of contacts.
"""
