"""Descriptions as ONNX: the graph that any runtime executes, the file, and executors that run it."""
