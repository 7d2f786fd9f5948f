"""The functions of models over stems that are exported: of one window, as `mgen.stems` runs many.

A caller takes a song apart as `mgen.stems.windows.crossfaded` does: windows that overlap, faded
into each other. The noise of a window is that of its place in the song, so what two windows have in
common is drawn alike.
"""

from typing import Any

import jax.numpy as jnp

from mgen.export.signature import Arrays, Model, Signature, symbolic
from mgen.stems.latent_sample import LatentStems
from mgen.stems.sample import FrozenSeparator, FrozenStems
from mgen.stems.separating import Separating, keys_of
from mgen.typing import Params


def of_stems(
    stems: FrozenStems | FrozenSeparator | LatentStems, fingerprint: str, **settings: Any
) -> list[Signature]:
    """`separate`: mix float32 [b, T, C] of one window -> stems [b, S, T, C].

    A model that draws stems also takes seed int32 [b], one a song, and first int32 [b], the block
    of `hop` samples in its song that the window begins with; and has `generate`: seed and first
    -> stems of a window from nothing.

    Args:
      settings: of `separate_windows`: how a mix is taken apart.
    """
    draws = not isinstance(stems, FrozenSeparator)
    model = Model("stems", stems, fingerprint, _about(stems))
    places = {"seed": ("b", jnp.int32), "first": ("b", jnp.int32)} if draws else {}
    mix = {"mix": (f"b, {stems.samples}, {stems.channels}", jnp.float32)}

    def separate(params: dict[str, Params], inputs: Arrays) -> Arrays:
        # A separator draws nothing: any place will do.
        nowhere = jnp.zeros(inputs["mix"].shape[:1], jnp.int32)
        seed, first = (inputs.get(name, nowhere) for name in ("seed", "first"))
        own: Any = params["stems"]
        mixes: Any = inputs["mix"][:, None]
        return {"stems": own.separate_windows(mixes, keys_of(seed), first, **settings)}

    def generate(params: dict[str, Params], inputs: Arrays) -> Arrays:
        own: Any = params["stems"]
        return {"stems": own.generate_windows(keys_of(inputs["seed"]), inputs["first"])}

    found = [Signature("separate", (model,), separate, symbolic(**mix, **places))]
    if draws:
        found.append(Signature("generate", (model,), generate, symbolic(**places)))
    return found


def _about(stems: Separating) -> dict[str, Any]:
    return {
        "stems": list(stems.names),
        "sample_rate": stems.sample_rate,
        "channels": stems.channels,
        "window": stems.samples,
        "hop": stems.hop,
    }
