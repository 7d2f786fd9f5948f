"""A caller that has TensorFlow and cannot import JAX or mgen.

python tensorflow_client.py SAVED_MODEL INPUTS.npz OUTPUTS.npz

Arrays are named "case|signature|name".
"""

import importlib.abc
import sys

HIDDEN = {"jax", "jaxlib", "flax", "orbax", "mgen"}


class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in HIDDEN:
            raise ImportError(f"{fullname} is hidden from this process")
        return None


def main(folder, inputs, outputs):
    sys.meta_path.insert(0, Blocker())
    try:
        import jax  # noqa: F401
    except ImportError:
        pass
    else:
        raise AssertionError("jax can be imported")
    import numpy as np
    import tensorflow as tf

    signatures = tf.saved_model.load(folder).signatures
    calls = {}
    for key, array in np.load(inputs, allow_pickle=False).items():
        case, signature, name = key.split("|")
        calls.setdefault((case, signature), {})[name] = tf.constant(array)
    assert {signature for _, signature in calls} == set(signatures)
    found = {}
    for (case, signature), arrays in calls.items():
        for name, value in signatures[signature](**arrays).items():
            found[f"{case}|{signature}|{name}"] = value.numpy()
    np.savez(outputs, **found)
    assert not HIDDEN & {name.partition(".")[0] for name in sys.modules}


if __name__ == "__main__":
    main(*sys.argv[1:])
