"""From predictions to scores: counting and measuring cases, and writing the results."""
