"""What more than one test file uses, an idea a file."""
