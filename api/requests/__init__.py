"""What is asked and answered: types made from the model file, repeated requests, refusals counted."""
