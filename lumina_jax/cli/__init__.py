"""The command line: a file for each group of verbs, their arguments and what they do. A verb imports its rooms when it runs."""
