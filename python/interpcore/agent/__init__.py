"""An agent under rules that it cannot bend: a policy asks for runs, the harness decides what they show."""
