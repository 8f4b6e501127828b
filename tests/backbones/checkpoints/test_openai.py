"""OpenAI's archives and plain weights with their names: what they compute, and that nothing in them is run."""

import io
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

from fedgraft.backbones import load_backbone
from fedgraft.backbones.checkpoints.reading import read_weights
from tests.backbones.checkpoints.conftest import CLIP_CFG, IMPORT, TEXTS, padded_ids, pictures, refusal

Build = Callable[..., nn.Module]
QUICK = {**CLIP_CFG, "quick_gelu": True}


@pytest.fixture
def archive(openclip_model: Build, tmp_path: Path) -> Path:
    """A traced model, its linear maps in half precision and its sizes among the weights, as OpenAI published theirs."""
    model = openclip_model(QUICK)
    for name, value in {"input_resolution": 48, "context_length": 32, "vocab_size": 790}.items():
        vars(model).pop(name, None)
        model.register_buffer(name, torch.tensor(value))
    mask = model._buffers.pop("attn_mask")
    vars(model)["attn_mask"] = mask  # a constant of the code, as there
    example = (torch.zeros(1, 3, 48, 48), torch.zeros(1, 32, dtype=torch.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, example, check_trace=False, strict=False)
    for name, parameter in traced.named_parameters():
        if not any(kept in name for kept in ("ln_", "embedding", "logit_scale")):
            parameter.data = parameter.data.half()
    torch.jit.save(traced, tmp_path / "ViT-T-16.pt")
    return tmp_path / "ViT-T-16.pt"


def test_an_archive_computes_what_openclip_makes_of_it(archive: Path, open_clip: Any, imported: IMPORT) -> None:
    """OpenCLIP runs the archive's code to read it and infers the sizes by itself."""
    oracle = open_clip.load_openai_model(str(archive), precision="fp32").eval()
    made = imported(archive)
    backbone = load_backbone(str(made.out))
    pixels, ids = backbone.preprocess(pictures()), padded_ids(AutoTokenizer.from_pretrained(made.out), 32)
    with torch.no_grad():
        images, texts = oracle.encode_image(pixels, normalize=True), oracle.encode_text(ids, normalize=True)
    torch.testing.assert_close(backbone.encode_images(pixels), images, rtol=0, atol=1e-5)
    torch.testing.assert_close(backbone.text.encode_texts(TEXTS), texts, rtol=0, atol=1e-5)
    assert made.precisions == ("float16", "float32")


def test_weights_are_those_that_torch_reads_from_the_archive(archive: Path) -> None:
    expected = torch.jit.load(archive).state_dict()
    found = read_weights(archive)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        assert (weight.shape, weight.dtype) == (tuple(expected[name].shape), expected[name].dtype)
        torch.testing.assert_close(weight.read(), expected[name], rtol=0, atol=0)


def test_precision_changes_the_files_and_not_the_backbone(archive: Path, imported: IMPORT, tmp_path: Path) -> None:
    kept = imported(archive)
    kept_folder = kept.out.rename(tmp_path / "kept")
    raised = imported(archive, precision="float32")
    assert raised.precisions == ("float32",)
    assert raised.bytes > kept.bytes
    assert load_backbone(str(raised.out)).fingerprint == load_backbone(str(kept_folder)).fingerprint


# --- plain weights, and those of a training checkpoint --------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}},
        lambda weights: {"model": {f"_orig_mod.model.{name}": value for name, value in weights.items()}},
    ],
    ids=["plain", "state_dict and module.", "model and two prefixes"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "torch's older format"])
def test_weights_of_a_training_checkpoint_are_found(
    wrap: Callable[[Any], Any], zipped: bool, openclip_model: Build, imported: IMPORT, tmp_path: Path
) -> None:
    model = openclip_model(QUICK)
    torch.save(wrap(model.state_dict()), tmp_path / "epoch_3.pt", _use_new_zipfile_serialization=zipped)
    backbone = load_backbone(str(imported(tmp_path / "epoch_3.pt", activation="quick_gelu").out))
    pixels = backbone.preprocess(pictures())
    with torch.no_grad():
        expected = model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(backbone.encode_images(pixels), expected, rtol=0, atol=1e-5)


def test_weights_that_do_not_say_their_activation_ask_for_it(
    openclip_model: Build, imported: IMPORT, tmp_path: Path
) -> None:
    torch.save(openclip_model(QUICK).state_dict(), tmp_path / "clip.pt")
    assert "--activation" in refusal(lambda: imported(tmp_path / "clip.pt"))


def test_heads_that_shapes_do_not_tell_ask_for_the_configuration(
    openclip_model: Build, imported: IMPORT, tmp_path: Path
) -> None:
    wide = {**CLIP_CFG, "vision_cfg": {**CLIP_CFG["vision_cfg"], "width": 1280, "layers": 1}}
    torch.save(openclip_model(wide).state_dict(), tmp_path / "clip.pt")
    assert "--config" in refusal(lambda: imported(tmp_path / "clip.pt", activation="gelu"))


def test_two_models_in_one_file_are_named(openclip_model: Build, imported: IMPORT, tmp_path: Path) -> None:
    weights = openclip_model(QUICK).state_dict()
    both = {f"{owner}.{name}": value for owner in ("student", "teacher") for name, value in weights.items()}
    torch.save(both, tmp_path / "both.pt")
    sentence = refusal(lambda: imported(tmp_path / "both.pt", activation="gelu"))
    assert "student." in sentence
    assert "teacher." in sentence


def test_a_resnet_is_refused(imported: IMPORT, tmp_path: Path) -> None:
    weights = {"visual.conv1.weight": torch.ones(4, 3, 3, 3), "visual.layer1.0.conv1.weight": torch.ones(4, 4, 1, 1)}
    torch.save(weights, tmp_path / "RN50.pt")
    assert "ResNet" in refusal(lambda: imported(tmp_path / "RN50.pt", activation="quick_gelu"))


def test_weights_with_other_names_are_refused(imported: IMPORT, tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.ones(2, 2)}, tmp_path / "other.pt")
    assert "visual.conv1.weight" in refusal(lambda: imported(tmp_path / "other.pt", activation="gelu"))


# --- nothing is run -------------------------------------------------------------------------------


class _Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self._path), "w")


def test_a_pickle_that_needs_code_is_named_and_not_run(imported: IMPORT, tmp_path: Path) -> None:
    torch.save({"logit_scale": _Touch(tmp_path / "touched")}, tmp_path / "evil.pt")
    sentence = refusal(lambda: imported(tmp_path / "evil.pt"))
    assert "needs code to be read" in sentence
    assert "torch.save(model.state_dict()" in sentence
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("evil", ["reduce", "module attribute"])
def test_an_archive_that_needs_code_is_named_and_not_run(evil: str, imported: IMPORT, tmp_path: Path) -> None:
    """The same in OpenAI's format; `torch.jit.load` would refuse it too, but a plain unpickler would not."""
    if evil == "reduce":
        content = pickle.dumps({"logit_scale": _Touch(tmp_path / "touched")}, protocol=2)
    else:  # os.system('...') under the name of a module of the archive
        command = f"touch {tmp_path / 'touched'}".encode()
        content = b"\x80\x02c__torch__.os\nsystem\ncos\nsystem\nU" + bytes([len(command)]) + command + b"\x85R."
    with zipfile.ZipFile(tmp_path / "evil.pt", "w") as archive:
        archive.writestr("evil/constants.pkl", b"")
        archive.writestr("evil/data.pkl", content)
    sentence = refusal(lambda: imported(tmp_path / "evil.pt"))
    assert "which is code" in sentence
    assert not (tmp_path / "touched").exists()


def test_the_archives_own_code_is_never_read(archive: Path, imported: IMPORT, tmp_path: Path) -> None:
    """With its code replaced by nonsense the archive no longer loads in torch, but its weights are read."""
    broken = tmp_path / "broken.pt"
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(broken, "w") as copy:
        for name in whole.namelist():
            copy.writestr(name, b"no code" if "/code/" in name and name.endswith(".py") else whole.read(name))
    with pytest.raises(RuntimeError):
        torch.jit.load(broken)
    assert imported(broken).parameters > 0


def test_a_tensor_outside_its_record_is_refused(imported: IMPORT, tmp_path: Path, archive: Path) -> None:
    """An archive can announce more than it holds; reading on would read other memory."""
    cut = tmp_path / "cut.pt"
    with zipfile.ZipFile(archive) as whole, zipfile.ZipFile(cut, "w") as copy:
        for name in whole.namelist():
            content = whole.read(name)
            copy.writestr(name, content[:64] if "/data/" in name else content)
    assert "cannot be read" in refusal(lambda: imported(cut))
    assert not (tmp_path / "imported").exists()


def test_an_archive_without_its_list_of_weights_is_named(imported: IMPORT, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.pt", "w") as archive:
        archive.writestr("empty/constants.pkl", b"")
    assert "data.pkl" in refusal(lambda: imported(tmp_path / "empty.pt"))


def test_a_module_that_holds_itself_is_damaged_and_not_endless(imported: IMPORT, tmp_path: Path) -> None:
    content = b"\x80\x02c__torch__\nA\n)\x81q\x00}U\x01aq\x01h\x00sb."
    with zipfile.ZipFile(tmp_path / "loop.pt", "w") as archive:
        archive.writestr("loop/constants.pkl", b"")
        archive.writestr("loop/data.pkl", content)
    assert "damaged" in refusal(lambda: imported(tmp_path / "loop.pt"))


@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_a_truncated_archive_is_named(kept: float, archive: Path, imported: IMPORT) -> None:
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * kept)])
    assert "truncated" in refusal(lambda: imported(archive))


def test_a_file_of_something_else_is_named(imported: IMPORT, tmp_path: Path) -> None:
    (tmp_path / "page.pt").write_bytes(b"<!DOCTYPE html>" * 20)
    assert "page.pt is no checkpoint" in refusal(lambda: imported(tmp_path / "page.pt"))


def test_a_pickle_of_something_else_is_named(imported: IMPORT, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    (tmp_path / "list.pt").write_bytes(buffer.getvalue())
    assert "holds a list" in refusal(lambda: imported(tmp_path / "list.pt"))
