"""What is read of the lines of a batch: files, merged results, and one line explained."""
