"""The course: chapters opened and run, exercises built from one source, answers checked."""
