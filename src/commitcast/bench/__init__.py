"""`commitcast bench`: what a commit with an event costs, beside the plain program.

Four programs run in one go, in turns, each in a server process of its own, driven over real
WebSockets by one client process:

- ``plain``: insert, ``await session.commit()``, ``await websocket.send_text(...)``;
- ``control``: the plain program once more, so that its ratio shows the noise of this machine;
- ``coordinated``: insert, `commitcast.emit`, commit; the event comes through a subscription;
- ``operation``: the same announced before and settled after (`Coordinator.operation`).

With ``--health`` it measures what recording the steps of health costs, in place of all but the first:

- ``health_off``: ``coordinated`` with ``health="off"``;
- ``health_control``: the same again, which shows the noise;
- ``health_full``: with ``health="full"``. The ratios of both are to ``health_off``, in each round.

Only the ratios of one run mean something; the absolute figures belong to the machine.
"""
