"""The parts of a run. `fedforget.experiment` tells the story that they make together; none of them imports it."""
