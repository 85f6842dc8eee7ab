"""Small MJCF models of all kinds."""

SLIDER = """<mujoco><worldbody><geom type="plane" size="1 1 1"/><body pos="0 0 .2"><joint name="x" type="slide"
 axis="0 0 1" damping="1"/><geom name="ball" size=".1"/></body></worldbody><actuator><motor joint="x" gear="20"
 ctrlrange="-1 1"/></actuator></mujoco>"""
"""Covered by every backend."""

STONES = """<mujoco><asset><mesh name="stone" vertex="0 0 0 .1 0 0 0 .1 0 0 0 .1"/></asset><worldbody><geom
 name="floor" type="plane" size="1 1 1"/><body><freejoint name="free"/><geom name="one" type="mesh" mesh="stone"/>
 </body><body pos="0 0 1"><freejoint/><geom name="two" type="mesh" mesh="stone"/></body><body pos="2 0 0"><joint
 name="hinge" damping="1 2"/><geom name="ball" size=".1"/></body></worldbody>
 <actuator><motor joint="hinge" ctrlrange="-1 1"/></actuator></mujoco>"""
"""Covered by MuJoCo C alone."""

HELD = """<mujoco><option timestep="0.01"/><worldbody><body name="hand" mocap="true" pos=".1 0 .5"><geom size=".02"
 contype="0" conaffinity="0"/></body><body name="arm"><joint name="ball" type="ball" damping=".2"/><geom type="capsule"
 size=".03" fromto="0 0 0 .3 .1 0" contype="0" conaffinity="0"/><body pos=".3 .1 0"><joint name="slide" type="slide"
 damping="1" stiffness="3"/><geom size=".04" contype="0" conaffinity="0"/></body></body></worldbody><equality>
 <weld body1="hand" body2="arm" solref=".1 1"/></equality><actuator><general joint="slide" dyntype="filter"
 dynprm=".05" gainprm="5" ctrlrange="-1 1"/></actuator><keyframe><key qpos=".8 .6 0 0 .1" act=".4"/></keyframe>
 </mujoco>"""
"""Its state has activation and a mocap pose."""

PASSIVE = """<mujoco><worldbody><body><joint name="x"/><geom size=".1"/></body></worldbody></mujoco>"""
"""Without an actuator."""

FALLING = """<mujoco><option gravity="0 0 -1e12"/><worldbody><body><joint name="x" type="slide" axis="0 0 1"/><geom
 size=".1"/></body></worldbody><actuator><motor joint="x" ctrlrange="-1 1"/></actuator></mujoco>"""
"""MuJoCo C diverges from every state."""
