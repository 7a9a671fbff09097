"""What the tests of attnkernels share; needs the `test` extra."""
