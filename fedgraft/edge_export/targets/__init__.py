"""Other runtimes than onnxruntime that an exported tower is converted for, one file each."""
