"""What a service needs of a version: the learner, the bundle of files, the reference profile."""
