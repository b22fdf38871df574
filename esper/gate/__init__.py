"""The measured acceptance gate: is a changed model faster here, and still good enough?

`Gate.compare` is the door; `statistics` and `sequential` hold the decision rule as pure functions
of recorded samples; `sampling`, `launcher` and `worker` draw them in fresh processes; `backends`
execute models; `quality` judges accuracy and drift.
"""
