"""The parts of a version that a service needs: the learner, the bundle of files and the reference profile."""
