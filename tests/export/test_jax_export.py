"""`jax.export` artefacts: equal to the models, for every platform, refused where not as written."""

import dataclasses
import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax import export

from mgen import manifest
from mgen.errors import UserError
from mgen.export import artefact, saved_model, signatures, stablehlo
from mgen.export.signature import Signature, models_of, symbolic
from mgen.lm.filters import SamplingConfig
from mgen.lm.stages import FrozenStage


@pytest.fixture(scope="module")
def loaded(exported):
    return artefact.load(exported)


@pytest.fixture
def broken(exported, tmp_path):
    """A copy to break."""
    return shutil.copytree(exported, tmp_path / "broken")


def test_loaded_functions_equal_the_models_for_every_batch_size_and_length(loaded, cases, equal):
    assert loaded.keys() == cases[0].inputs.keys()
    for case in cases:
        for name, inputs in case.inputs.items():
            equal(loaded[name](**inputs), case.outputs[name])


def test_programs_are_lowered_for_every_platform_and_hold_no_weights(exported, functions):
    for model in models_of(functions):
        stored = safetensors.numpy.load_file(exported / stablehlo.weights_file(model.name))
        assert stored.keys() == model.weights().keys()
    for signature in functions:
        data = (exported / stablehlo.program_file(signature.name)).read_bytes()
        program = export.deserialize(bytearray(data))
        assert program.platforms == ("cpu", "cuda", "tpu") and not program.has_vjp()
        shapes = [aval.shape for aval in program.in_avals]
        assert any(shape and str(shape[0]) == "b" for shape in shapes)
    weights = exported / stablehlo.weights_file("codec")
    program = exported / stablehlo.program_file("encode")
    assert program.stat().st_size < weights.stat().st_size / 4


def test_manifest_names_parents_rates_shapes_and_the_hash_of_every_file(exported, codec, joint):
    about = manifest.read(exported)
    assert about["kind"] == "export" and about["platforms"] == ["cpu", "cuda", "tpu"]
    lms = {"lm_0": "l" * 64, "lm_1": "s" * 64}
    assert about["parents"] == {"codec": "c" * 64, "joint": "j" * 64, **lms}
    rates = {"sample_rate": 16000, "frame_rate": 50.0, "codebooks": 4, "codebook_size": 512}
    assert rates.items() <= about["models"]["codec"].items()
    assert about["models"]["lm_1"]["frames"] == 30 and about["models"]["lm_1"]["top_k"] == 100
    assert about["signatures"]["generate"]["models"] == ["lm_0", "lm_1", "joint"]
    assert about["models"]["joint"]["window_seconds"] == joint.config.seconds
    assert about["signatures"]["encode"] == {
        "models": ["codec"],
        "inputs": {"audio": {"shape": ["b", "320*f", 1], "dtype": "float32"}},
        "outputs": {"codes": {"shape": ["b", "f", 4], "dtype": "int32"}},
    }
    assert "encode(audio float32 [b, 320*f, 1]) -> codes int32 [b, f, 4]" in artefact.report(about)
    found = {path.relative_to(exported).as_posix() for path in exported.rglob("*.*")}
    assert about["files"].keys() == found - {manifest.FILE}


def test_an_export_is_reproducible_and_tells_nothing_of_the_machine(exported, functions, tmp_path):
    artefact.write(artefact.Job(out=tmp_path / "again", formats=("jax_export",)), functions)
    assert manifest.read(tmp_path / "again") == manifest.read(exported)
    for path in exported.rglob("*.stablehlo"):
        assert b"/mgen/" not in path.read_bytes()


def test_a_segmented_codec_that_normalises_gives_levels_and_has_the_length_of_a_segment(codec):
    config = codec.config.replace(normalize=True, causal=False, segment_seconds=0.1)
    variables = dict(codec.variables)
    segmented = type(codec)(config, variables.pop("params"), variables)
    encode, decode = signatures.of_codec(segmented, "s" * 64, 6.0)
    params = {"codec": segmented.variables}
    audio = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1600, 1), np.float32))
    assert [str(dim) for dim in encode.inputs["audio"].shape] == ["b", "1600", "1"]
    found = encode.run(params, {"audio": audio})
    codes, levels = segmented.encode_with_levels(audio)
    np.testing.assert_array_equal(found["codes"], codes)
    np.testing.assert_allclose(found["levels"], levels, rtol=1e-6)
    back = decode.run(params, found)["audio"]
    np.testing.assert_allclose(back, segmented.decode(codes, levels), atol=1e-5)


def test_a_recurrent_codec_has_the_length_that_was_asked_for(codec):
    config = codec.config.replace(lstm_layers=1)
    recurrent = type(codec)(config, {}, codec.variables)
    encode, decode = signatures.of_codec(recurrent, "r" * 64, 2.0)
    assert [str(d) for d in encode.inputs["audio"].shape] == ["b", "32000", "1"]
    assert [str(d) for d in decode.inputs["codes"].shape] == ["b", "100", "4"]


def test_a_codec_without_codes_has_latents(codec):
    config = codec.config.replace(bottleneck="none")
    continuous = type(codec)(config, codec.variables["params"])
    encode, decode = signatures.of_codec(continuous, "l" * 64, 2.0)
    params = {"codec": continuous.variables}
    assert decode.inputs["latents"].dtype == jnp.float32
    audio = jnp.ones((1, 640, 1))
    latents = encode.run(params, {"audio": audio})
    assert latents["latents"].shape == (1, 2, config.latent_dim)
    assert decode.run(params, latents)["audio"].shape == audio.shape


@pytest.mark.parametrize(
    ("name", "inputs"),
    [
        ("tiny_musicgen", {"attributes": (2, 4)}),
        (
            "tiny_musicgen_melody",
            {"chroma": (2, 2, 12), "chroma_mask": (2, 2), "joint_embedding": (2, 1, 64)},
        ),
        ("tiny_stemgen", {"category": (2, 1, 1), "context": (2, 10, 4)}),
        ("tiny_musicgen_style", {"attributes": (2, 4), "style": (2, 22, 4)}),
    ],
)
def test_streams_that_no_stage_writes_are_inputs(untrained, name, inputs):
    task, state = untrained(f"hierarchy.{name}")
    stage = FrozenStage.from_trained(task.config, state.params, {})
    generate = signatures.of_chain([stage], ["m" * 64], 0.2, [SamplingConfig()], {})
    given = {
        name: jax.ShapeDtypeStruct([2 if str(d) == "b" else int(d) for d in x.shape], x.dtype)
        for name, x in generate.inputs.items()
    }
    sampling = {"seed": (2,), "temperature": (1,), "guidance": ()}
    assert {name: x.shape for name, x in given.items()} == inputs | sampling
    found = jax.eval_shape(generate.run, {m.name: m.params for m in generate.models}, given)
    assert found["codes"].shape == (2, 10, 4)


def test_an_embedding_of_audio_pairs_reads_no_text(joint):
    config = dataclasses.replace(joint.config, text=None)
    audio_only = type(joint)(config, joint.variables["params"])
    (only,) = signatures.of_joint(audio_only, signatures.joint_model(audio_only, "a" * 64))
    assert only.name == "embed_audio"


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "inputs are none, expected audio"),
        (
            {"audio": np.zeros((1, 320))},
            r"audio float64 \[1, 320\], expected audio float32 \[b, 320\*f, 1\]",
        ),
        ({"audio": np.zeros((1, 320, 2))}, r"\[1, 320, 2\], expected"),
        ({"audio": np.zeros((1, 320, 1), complex)}, "complex128"),
        ({"audio": np.zeros((1, 321, 1))}, r"\[1, 321, 1\], expected audio"),
    ],
)
def test_wrong_inputs_are_refused(loaded, inputs, words):
    with pytest.raises(UserError, match=words) as error:
        loaded["encode"](**inputs)
    assert "\n" not in str(error.value) and "encode" in str(error.value)


def test_what_is_no_export_or_was_changed_is_refused(broken, tmp_path):
    def refused(*words):
        with pytest.raises(UserError) as error:
            artefact.load(broken)
        for word in words:
            assert word in str(error.value) and "\n" not in str(error.value)

    program = broken / stablehlo.program_file("encode")
    whole = program.read_bytes()
    program.write_bytes(whole[: len(whole) // 2])
    refused("encode.stablehlo", "manifest.json")
    program.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused("encode.stablehlo", "manifest.json")
    program.unlink()
    refused("encode.stablehlo", "cannot be read")
    program.write_bytes(whole)
    weights = broken / stablehlo.weights_file("joint")
    data = weights.read_bytes()
    weights.write_bytes(data[:-4] + b"\0\0\0\0")
    refused("joint.safetensors")
    weights.write_bytes(data)
    about = manifest.read(broken)
    for field in ("files", "signatures"):
        manifest.write(broken, {name: about[name] for name in about if name != field})
        refused(field)
    manifest.write(broken, about | {"formats": ["saved_model"]})
    refused("jax_export", "saved_model")
    manifest.write(broken, about | {"kind": "model"})
    refused("kind", "export")
    (broken / manifest.FILE).unlink()
    refused("manifest.json")


def change_program(folder, name, data):
    """Puts another program there, with its hash in the manifest."""
    file = stablehlo.program_file(name)
    (folder / file).write_bytes(data)
    about = manifest.read(folder)
    about["files"][file] = artefact.sha256(folder / file)
    manifest.write(folder, about)


def lowered(function, platforms=("cpu",)):
    audio = symbolic(audio=("b, 4, 4", jnp.float32))
    return export.export(jax.jit(function), platforms=platforms)({}, audio)


def test_a_program_that_calls_other_code_is_not_loaded_nor_written(broken):
    def qr(params, inputs):
        return {"q": jnp.linalg.qr(inputs["audio"])[0]}

    change_program(broken, "encode", lowered(qr).serialize())
    with pytest.raises(UserError, match=r"encode.stablehlo: calls .*lapack"):
        artefact.load(broken)
    signature = Signature("qr", (), qr, symbolic(audio=("b, 4, 4", jnp.float32)))
    with pytest.raises(ValueError, match="qr: calls"):
        stablehlo.lower(signature, ("cpu",))


def test_a_program_of_another_platform_or_no_program_is_not_loaded(broken):
    def same(params, inputs):
        return inputs

    change_program(broken, "encode", lowered(same, ("tpu",)).serialize())
    with pytest.raises(UserError, match=r"encode.stablehlo: made for tpu, this machine is cpu"):
        artefact.load(broken)
    change_program(broken, "encode", b"not a program")
    with pytest.raises(UserError, match=r"encode.stablehlo: not a program"):
        artefact.load(broken)


def test_settings_and_folders_are_checked_before_anything_is_written(exported, tmp_path):
    for job, words in (
        ({"formats": ("savedmodel",)}, "--formats: 'savedmodel' is none, expected of saved_model"),
        ({"formats": ()}, "--formats"),
        ({"platforms": ("gpu",)}, "--platforms: 'gpu' is none, expected of cpu, cuda, tpu"),
    ):
        with pytest.raises(UserError, match=words):
            artefact.Job(**{"out": tmp_path / "out", "formats": ("jax_export",), **job})
    (tmp_path / "file").touch()
    for out in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match=f"--out={out}: holds files, expected an export"):
            artefact.Job(out=out, formats=("jax_export",))
    manifest.write(tmp_path / "model", {"kind": "model"})
    with pytest.raises(UserError, match="holds model, expected an export"):
        artefact.Job(out=tmp_path / "model", formats=("jax_export",))
    artefact.Job(out=exported, formats=("jax_export",))


def test_an_export_is_replaced_whole_or_not_at_all(functions, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    job = artefact.Job(out=out, formats=("jax_export",), platforms=("cpu",))
    extra = tmp_path / "vocabulary.model"
    extra.write_text("pieces")
    artefact.write(job, functions[:2], {"vocabulary.model": extra})
    before = manifest.read(out)
    assert (out / "vocabulary.model").read_text() == "pieces"
    assert "vocabulary.model" in before["files"]

    def failing(params, inputs):
        raise RuntimeError("half-way")

    broken = Signature("fails", (), failing, symbolic(audio=("b", jnp.float32)))
    with pytest.raises(RuntimeError):
        artefact.write(job, [*functions[:2], broken])
    assert manifest.read(out) == before and artefact.load(out)
    artefact.write(job, functions[2:4])
    assert artefact.load(out).keys() == {"embed_audio", "embed_text"}
    assert not (out / "vocabulary.model").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "vocabulary.model"}


def test_a_saved_model_without_tensorflow_is_refused_by_the_name_of_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UserError, match=r"--formats=saved_model: .*extra `export`"):
        saved_model.require()


def test_manifest_is_json_of_plain_types(exported):
    text = (exported / manifest.FILE).read_text()
    assert json.loads(text) == manifest.read(exported)
