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
from mgen.export.signature import Model, Signature, symbolic
from mgen.lm.filters import SamplingConfig
from mgen.lm.stages import FrozenStage


@pytest.fixture(scope="module")
def functions(exported):
    return artefact.load(exported)


@pytest.fixture
def broken(exported, tmp_path):
    """A copy to break."""
    return shutil.copytree(exported, tmp_path / "broken")


def test_loaded_functions_equal_the_models_for_every_batch_size_and_length(functions, cases, equal):
    assert functions.keys() == cases[0].inputs.keys()
    for case in cases:
        for name, inputs in case.inputs.items():
            equal(functions[name](**inputs), case.outputs[name])


def test_programs_are_lowered_for_every_platform_and_hold_no_weights(exported, models):
    for model in models:
        stored = safetensors.numpy.load_file(exported / stablehlo.weights_file(model.name))
        assert stored.keys() == model.weights().keys()
        for signature in model.signatures:
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
    assert about["parents"] == {"codec": "c" * 64, "joint": "j" * 64, "lm": "l" * 64}
    rates = {"sample_rate": 16000, "frame_rate": 50.0, "codebooks": 4, "codebook_size": 512}
    assert rates.items() <= about["models"]["codec"].items()
    assert about["models"]["lm"]["frames"] == 12 and about["models"]["lm"]["top_k"] == 100
    assert about["models"]["joint"]["window_seconds"] == joint.config.seconds
    assert about["signatures"]["encode"] == {
        "model": "codec",
        "inputs": {"audio": {"shape": ["b", "320*f", 1], "dtype": "float32"}},
        "outputs": {"codes": {"shape": ["b", "f", 4], "dtype": "int32"}},
    }
    assert "encode(audio float32 [b, 320*f, 1]) -> codes int32 [b, f, 4]" in artefact.report(about)
    found = {path.relative_to(exported).as_posix() for path in exported.rglob("*.*")}
    assert about["files"].keys() == found - {manifest.FILE}


def test_an_export_is_reproducible_and_tells_nothing_of_the_machine(exported, models, tmp_path):
    artefact.write(artefact.Job(out=tmp_path / "again", formats=("jax_export",)), models)
    assert manifest.read(tmp_path / "again") == manifest.read(exported)
    for path in exported.rglob("*.stablehlo"):
        assert b"/mgen/" not in path.read_bytes()


def test_a_segmented_codec_that_normalises_gives_levels_and_has_the_length_of_a_segment(codec):
    config = codec.config.replace(normalize=True, causal=False, segment_seconds=0.1)
    variables = dict(codec.variables)
    segmented = type(codec)(config, variables.pop("params"), variables)
    model = signatures.of_codec(segmented, "s" * 64, 6.0)
    encode, decode = model.signatures
    audio = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1600, 1), np.float32))
    assert [str(dim) for dim in encode.inputs["audio"].shape] == ["b", "1600", "1"]
    found = encode.run(model.params, {"audio": audio})
    codes, levels = segmented.encode_with_levels(audio)
    np.testing.assert_array_equal(found["codes"], codes)
    np.testing.assert_allclose(found["levels"], levels, rtol=1e-6)
    back = decode.run(model.params, found)["audio"]
    np.testing.assert_allclose(back, segmented.decode(codes, levels), atol=1e-5)


def test_a_recurrent_codec_has_the_length_that_was_asked_for(codec):
    config = codec.config.replace(lstm_layers=1)
    model = signatures.of_codec(type(codec)(config, {}, codec.variables), "r" * 64, 2.0)
    assert [str(d) for d in model.signatures[0].inputs["audio"].shape] == ["b", "32000", "1"]
    assert [str(d) for d in model.signatures[1].inputs["codes"].shape] == ["b", "100", "4"]


def test_a_codec_without_codes_has_latents(codec):
    config = codec.config.replace(bottleneck="none")
    model = signatures.of_codec(type(codec)(config, codec.variables["params"]), "l" * 64, 2.0)
    encode, decode = model.signatures
    assert decode.inputs["latents"].dtype == jnp.float32
    audio = jnp.ones((1, 640, 1))
    latents = encode.run(model.params, {"audio": audio})
    assert latents["latents"].shape == (1, 2, config.latent_dim)
    assert decode.run(model.params, latents)["audio"].shape == audio.shape


def test_vectors_before_the_codes_are_inputs(untrained):
    task, state = untrained("hierarchy.tiny_musicgen_melody")
    stage = FrozenStage.from_trained(task.config, state.params, {})
    model = signatures.of_stage(stage, "m" * 64, 0.2, SamplingConfig(), {})
    (generate,) = model.signatures
    inputs = {
        name: jax.ShapeDtypeStruct([2 if str(d) == "b" else int(d) for d in x.shape], x.dtype)
        for name, x in generate.inputs.items()
    }
    assert inputs["front_0"].shape == (2, 2, 12) and inputs["front_mask_0"].shape == (2, 2)
    assert inputs["front_1"].shape == (2, 1, 64)
    found = jax.eval_shape(generate.run, model.params, inputs)
    assert found["codes"].shape == (2, 10, 4)


def test_an_embedding_of_audio_pairs_reads_no_text(joint):
    config = dataclasses.replace(joint.config, text=None)
    model = signatures.of_joint(type(joint)(config, joint.variables["params"]), "a" * 64)
    assert [signature.name for signature in model.signatures] == ["embed_audio"]


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
def test_wrong_inputs_are_refused(functions, inputs, words):
    with pytest.raises(UserError, match=words) as error:
        functions["encode"](**inputs)
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
    signature = Signature("qr", qr, symbolic(audio=("b, 4, 4", jnp.float32)))
    with pytest.raises(ValueError, match="qr: calls"):
        stablehlo.lower(Model("m", {}, (signature,), "", {}), signature, ("cpu",))


def test_a_program_of_another_platform_or_no_program_is_not_loaded(broken):
    def same(params, inputs):
        return inputs

    change_program(broken, "encode", lowered(same, ("tpu",)).serialize())
    with pytest.raises(UserError, match=r"encode.stablehlo: made for tpu, this machine is cpu"):
        artefact.load(broken)
    change_program(broken, "encode", b"not a program")
    with pytest.raises(UserError, match=r"encode.stablehlo: not a program"):
        artefact.load(broken)


def test_settings_and_folders_are_checked_before_anything_is_written(exported, models, tmp_path):
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


def test_an_export_is_replaced_whole_or_not_at_all(models, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    job = artefact.Job(out=out, formats=("jax_export",), platforms=("cpu",))
    extra = tmp_path / "vocabulary.model"
    extra.write_text("pieces")
    artefact.write(job, models[:1], {"vocabulary.model": extra})
    before = manifest.read(out)
    assert (out / "vocabulary.model").read_text() == "pieces"
    assert "vocabulary.model" in before["files"]

    def failing(params, inputs):
        raise RuntimeError("half-way")

    broken = Signature("fails", failing, symbolic(audio=("b", jnp.float32)))
    with pytest.raises(RuntimeError):
        artefact.write(job, [models[0], Model("m", {}, (broken,), "", {})])
    assert manifest.read(out) == before and artefact.load(out)
    artefact.write(job, models[1:2])
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
