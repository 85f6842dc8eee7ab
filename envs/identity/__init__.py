"""What makes a task the same task again: the options it was made with, where its class is found, and its source."""
