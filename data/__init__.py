"""Dataset builders (TFDS, ArrayRecord), one folder a dataset, one record type: `mgen.inputs.record`."""
