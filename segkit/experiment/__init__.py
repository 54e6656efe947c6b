"""From a checked configuration to built objects and a run."""
