"""The commands of `urza`, a file for each subject; `session` has what they share."""
