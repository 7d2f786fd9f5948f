"""Dataset builders (TFDS, ArrayRecord), one folder a dataset, all of `mgen.inputs.record`."""
