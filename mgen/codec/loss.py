"""Losses of neural codecs: pure functions of target x and estimate y, audio [B, T, C] in [-1, 1].

With S_w the magnitude spectrogram of window w and hop w/4 (frames centred, ends reflected), M_w its
mel bands, D_k and D_k^l the logits and the features at layer l of sub-discriminator k:

    (1) time      mean |x - y|
    (2) STFT      mean over w of  a mean |S_w x - S_w y|  +  b mean |log S_w x - log S_w y|
                                  +  c ||S_w x - S_w y||_F / ||S_w x||_F
    (3) mel       sum over w of   a mean |M_w x - M_w y|
                                  +  b mean |log10 M_w x - log10 M_w y|
                                  +  c_w mean over frames of ||log10 M_w x - log10 M_w y||_2
                                  +  d_w mean (log10 M_w x - log10 M_w y)^2
    (4) hinge     D: mean over k of  mean max(0, 1 - D_k x) + mean max(0, 1 + D_k y)
                  G: mean over k of  mean max(0, 1 - D_k y)
    (5) squares   D: sum over k of  mean (1 - D_k x)^2 + mean (D_k y)^2
                  G: sum over k of  mean (1 - D_k y)^2
    (6) features  sum or mean over k, l of  mean |D_k^l x - D_k^l y|
                  mean over k, l of the same / mean |D_k^l x|

(2) Parallel WaveGAN (arXiv:1910.11480), eqs. 3-6; (3) b DAC (arXiv:2306.06546), section 3.6, a and
c SoundStream (arXiv:2107.03312), eqs. 5-6, a and d EnCodec (arXiv:2210.13438), section 3.4, as
released; (4) SoundStream, eqs. 1-3; (5) and the sum of (6) HiFi-GAN (arXiv:2010.05646), eqs. 1-6,
and DAC; the mean of (6) SoundStream, eq. 4; the ratio EnCodec, eq. 2.

Commitment, codebook and KL terms come from the bottleneck; only their weights are here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from mgen.audio import mel, stft
from mgen.codec.discriminators import Verdict
from mgen.typing import Array, Float

# Terms that reach the generator through its audio; the bottleneck's reach it directly and are never
# balanced.
AUDIO_TERMS = ("time_l1", "stft", "mel", "adversarial", "features")


def default_config(**overrides: Any) -> ml_collections.ConfigDict:
    """Weights and forms of all terms; a term of weight 0 costs nothing.

    `adversarial.form`: hinge, hinge_linear (generator side -mean D_k y, as audiocraft trains) or
    least_squares; `adversarial.ramp`: steps over which its weight grows from 0 once the
    discriminator trains. `features.form`: relative, mean or sum. `mel.n_mels` is one number for all
    windows or one each. `mel.alpha`: c_w and d_w of (3) are multiplied by 1 ("one") or by
    sqrt(w / 2) ("sqrt_half_window"). `balancer.enabled`: weights of the audio terms are shares of
    the gradient (mgen/codec/balancer.py).
    """
    config = ml_collections.ConfigDict(
        dict(
            time_l1=dict(weight=0.0),
            stft=dict(
                weight=0.0,
                windows=(2048, 1024, 512, 256, 128),
                linear=0.0,
                log=1.0,
                convergence=1.0,
                floor=1e-4,
                a_weighting=False,
                mid_side=False,
            ),
            mel=dict(
                weight=0.0,
                windows=(2048, 1024, 512, 256, 128, 64, 32),
                n_mels=(64,),
                fmin=0.0,
                linear_l1=1.0,
                log_l1=0.0,
                log_l2=0.0,
                log_mse=0.0,
                alpha="one",
                floor=1e-5,
            ),
            adversarial=dict(weight=0.0, form="hinge", ramp=0),
            features=dict(weight=0.0, form="relative"),
            commitment=dict(weight=1.0),
            codebook=dict(weight=1.0),
            kl=dict(weight=0.0),
            balancer=dict(enabled=False, decay=0.999, total_norm=1.0),
        )
    )
    config.update(overrides)
    return config


def recipe(name: str) -> ml_collections.ConfigDict:
    """Published loss settings: soundstream, encodec_24khz, encodec_48khz, encodec_32khz (MusicGen),
    dac, oobleck (Stable Audio).
    """

    def encodec(adversarial: float, features: float) -> dict[str, Any]:
        # Sums over seven windows and two terms become EnCodec's mean over both.
        return dict(
            time_l1=dict(weight=0.1),
            mel=dict(weight=1.0, linear_l1=1 / 14, log_mse=1 / 14),
            adversarial=dict(weight=adversarial),
            features=dict(weight=features),
            balancer=dict(enabled=True),
        )

    musicgen = encodec(4.0, 4.0)
    musicgen["mel"] = dict(
        weight=2.0, windows=(1024, 512, 256, 128, 64), fmin=64.0, linear_l1=0.1, log_mse=0.1
    )
    musicgen["adversarial"]["form"] = "hinge_linear"
    recipes: dict[str, dict[str, Any]] = {
        "soundstream": dict(
            mel=dict(
                weight=1.0,
                windows=(2048, 1024, 512, 256, 128, 64),
                linear_l1=64.0,  # the paper's L1 norm over 64 bins
                log_l2=1.0,
                alpha="sqrt_half_window",
            ),
            adversarial=dict(weight=1.0),
            features=dict(weight=100.0, form="mean"),
        ),
        "encodec_24khz": encodec(3.0, 3.0),
        "encodec_48khz": encodec(4.0, 4.0),
        "encodec_32khz": musicgen,
        "dac": dict(
            mel=dict(weight=15.0, n_mels=(320, 160, 80, 40, 20, 10, 5), linear_l1=0.0, log_l1=1.0),
            adversarial=dict(weight=1.0, form="least_squares"),
            features=dict(weight=2.0, form="sum"),
            commitment=dict(weight=0.25),
            codebook=dict(weight=1.0),
        ),
        "oobleck": dict(
            # Mean over left, right, mid and side; the release adds the means of the two pairs.
            stft=dict(
                weight=2.0,
                windows=(2048, 1024, 512, 256, 128, 64, 32),
                a_weighting=True,
                mid_side=True,
            ),
            adversarial=dict(weight=0.1, form="hinge_linear"),
            features=dict(weight=5.0, form="mean"),
            kl=dict(weight=1e-4),
        ),
    }
    if name not in recipes:
        raise ValueError(f"loss recipe {name!r}, expected one of {sorted(recipes)}")
    return default_config(**recipes[name])


def time_l1(target: Float[Array, "B T C"], estimate: Float[Array, "B T C"]) -> Array:
    """(1)."""
    return jnp.mean(jnp.abs(target - estimate))


def multi_resolution_stft(
    target: Float[Array, "B T C"],
    estimate: Float[Array, "B T C"],
    *,
    windows: Sequence[int],
    sample_rate: int,
    linear: float = 0.0,
    log: float = 1.0,
    convergence: float = 1.0,
    floor: float = 1e-4,
    a_weighting: bool = False,
    mid_side: bool = False,
) -> Array:
    """(2), natural log; magnitudes are clamped from below at `floor`.

    `a_weighting` multiplies magnitudes by the A curve (IEC 61672-1), where auraloss filters by a
    short FIR near it. `mid_side` adds L + R and L - R to the channels of stereo.
    """
    if mid_side and target.shape[-1] == 2:
        target, estimate = add_mid_side(target), add_mid_side(estimate)
    total = jnp.zeros(())
    for window in windows:
        x, y = (_magnitudes(audio, window, floor) for audio in (target, estimate))
        if a_weighting:
            gain = a_weight(np.linspace(0.0, sample_rate / 2, window // 2 + 1)).astype(np.float32)
            gain = gain[None, None, None]
            x, y = jnp.maximum(x * gain, floor), jnp.maximum(y * gain, floor)
        if linear:
            total += linear * jnp.mean(jnp.abs(x - y))
        if log:
            total += log * jnp.mean(jnp.abs(jnp.log(x) - jnp.log(y)))
        if convergence:
            total += convergence * jnp.mean(_norm(x - y, (-2, -1)) / _norm(x, (-2, -1)))
    return total / len(windows)


def multi_scale_mel(
    target: Float[Array, "B T C"],
    estimate: Float[Array, "B T C"],
    *,
    windows: Sequence[int],
    sample_rate: int,
    n_mels: Sequence[int] = (64,),
    fmin: float = 0.0,
    linear_l1: float = 1.0,
    log_l1: float = 0.0,
    log_l2: float = 0.0,
    log_mse: float = 0.0,
    alpha: str = "one",
    floor: float = 1e-5,
) -> Array:
    """(3) on magnitude mel spectrograms, clamped from below at `floor` before log10.

    A window of w samples cannot resolve more than w/2 + 1 bands: narrow windows leave some filters
    empty, and those add nothing.
    """
    bands = tuple(n_mels) * len(windows) if len(n_mels) == 1 else tuple(n_mels)
    if len(bands) != len(windows):
        raise ValueError(f"mel.n_mels has {len(bands)} entries for {len(windows)} windows")
    if alpha not in ("one", "sqrt_half_window"):
        raise ValueError(f"mel.alpha is {alpha!r}, expected 'one' or 'sqrt_half_window'")
    total = jnp.zeros(())
    for window, count in zip(windows, bands):
        x, y = (
            mel.mel_spectrogram(
                jnp.moveaxis(audio, -1, 1),
                sample_rate=sample_rate,
                n_fft=window,
                hop=window // 4,
                n_mels=count,
                fmin=fmin,
            )
            for audio in (target, estimate)
        )
        scale = (window / 2) ** 0.5 if alpha == "sqrt_half_window" else 1.0
        if linear_l1:
            total += linear_l1 * jnp.mean(jnp.abs(x - y))
        if not (log_l1 or log_l2 or log_mse):
            continue
        difference = jnp.log10(jnp.maximum(x, floor)) - jnp.log10(jnp.maximum(y, floor))
        if log_l1:
            total += log_l1 * jnp.mean(jnp.abs(difference))
        if log_l2:
            total += log_l2 * scale * jnp.mean(_norm(difference, (-1,)))
        if log_mse:
            total += log_mse * scale * jnp.mean(jnp.square(difference))
    return total


def reconstruction(
    config: ml_collections.ConfigDict, sample_rate: int, target: Float[Array, "B T C"]
) -> dict[str, Callable[[Array], Array]]:
    """The unweighted terms time_l1, stft and mel as functions of the estimate [B, T, C]; those of
    weight 0 are left out."""
    terms: dict[str, Callable[[Array], Array]] = {}
    if config.time_l1.weight:
        terms["time_l1"] = functools.partial(time_l1, target)
    for name, function in (("stft", multi_resolution_stft), ("mel", multi_scale_mel)):
        options = dict(config[name])
        if options.pop("weight"):
            terms[name] = functools.partial(function, target, sample_rate=sample_rate, **options)
    return terms


def discriminator_loss(
    real: Sequence[Verdict], fake: Sequence[Verdict], form: str = "hinge"
) -> Array:
    """Discriminator side of (4) or (5)."""
    pairs = [(r.logits, f.logits) for r, f in zip(real, fake)]
    if form in ("hinge", "hinge_linear"):
        terms = [jnp.mean(jax.nn.relu(1 - r)) + jnp.mean(jax.nn.relu(1 + f)) for r, f in pairs]
        return jnp.mean(jnp.stack(terms))
    if form == "least_squares":
        terms = [jnp.mean(jnp.square(1 - r)) + jnp.mean(jnp.square(f)) for r, f in pairs]
        return jnp.sum(jnp.stack(terms))
    raise ValueError(_unknown_form("adversarial", form, "hinge, hinge_linear, least_squares"))


def generator_loss(fake: Sequence[Verdict], form: str = "hinge") -> Array:
    """Generator side of (4) or (5); hinge_linear is -mean D_k y."""
    if form == "hinge":
        return jnp.mean(jnp.stack([jnp.mean(jax.nn.relu(1 - f.logits)) for f in fake]))
    if form == "hinge_linear":
        return -jnp.mean(jnp.stack([jnp.mean(f.logits) for f in fake]))
    if form == "least_squares":
        return jnp.sum(jnp.stack([jnp.mean(jnp.square(1 - f.logits)) for f in fake]))
    raise ValueError(_unknown_form("adversarial", form, "hinge, hinge_linear, least_squares"))


def feature_matching(
    real: Sequence[Verdict], fake: Sequence[Verdict], form: str = "relative"
) -> Array:
    """(6): form relative (EnCodec), mean (SoundStream) or sum (HiFi-GAN, DAC). No gradient reaches
    `real`.
    """
    if form not in ("relative", "mean", "sum"):
        raise ValueError(_unknown_form("features", form, "relative, mean, sum"))
    terms = []
    for r, f in zip(real, fake):
        for x, y in zip(jax.lax.stop_gradient(r.features), f.features):
            distance = jnp.mean(jnp.abs(x - y))
            # Features of silence are all zero: a ratio to them has no meaning and would overflow.
            scale = jnp.maximum(jnp.mean(jnp.abs(x)), 1e-5) if form == "relative" else 1.0
            terms.append(distance / scale)
    return jnp.sum(jnp.stack(terms)) if form == "sum" else jnp.mean(jnp.stack(terms))


def add_mid_side(audio: Float[Array, "B T 2"]) -> Float[Array, "B T 4"]:
    """Left, right, left + right, left - right."""
    left, right = audio[..., :1], audio[..., 1:]
    return jnp.concatenate([audio, left + right, left - right], axis=-1)


def a_weight(frequency: np.ndarray) -> np.ndarray:
    """Amplitude gain of the A curve at `frequency` in Hz, 1 at 1 kHz (IEC 61672-1, annex E)."""
    poles = (20.598997, 107.65265, 737.86223, 12194.217)

    def response(f: np.ndarray | float) -> np.ndarray:
        s = np.square(f)
        a, b, c, d = np.square(poles)
        return d * np.square(s) / ((s + a) * np.sqrt((s + b) * (s + c)) * (s + d))

    return response(np.asarray(frequency, np.float64)) / response(1000.0)


def _magnitudes(audio: Float[Array, "B T C"], window: int, floor: float) -> Array:
    spectrum = stft.stft(jnp.moveaxis(audio, -1, 1), n_fft=window, hop=window // 4)
    return jnp.maximum(stft.magnitude(spectrum), floor)


def _norm(x: Array, axes: tuple[int, ...]) -> Array:
    # Clamped: the square root has no gradient where estimate and target are equal.
    return jnp.sqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=axes), 1e-12))


def _unknown_form(term: str, form: str, expected: str) -> str:
    return f"loss.{term}.form is {form!r}, expected one of {expected}"
