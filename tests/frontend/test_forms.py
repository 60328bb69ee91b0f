"""Every form of a checkpoint gives the numbers that transformers reads out of it; what cannot be read is one sentence.

fp32 unless a test says otherwise. Forms whose package is not installed are skipped, and the sentence that names the
package is tested without it.
"""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from command import change_config, model_folder
from gguf import GGMLQuantizationType as Quantisation
from safetensors.torch import save_file
from tiny_gguf import write_llama
from tiny_models import llama, relative, token_ids
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import tintc
from tintc.errors import ModelError
from tintc.frontend.source import quantised
from tintc.frontend.source.gguf_header import check_gguf
from tintc.frontend.source.load import load_auxiliary
from tintc.frontend.source.provenance import TOKENIZER_PROBLEM
from tools.sweep.tiny import tiny_model

IDS = token_ids(2, 9)


def tiny(**options: Any) -> Any:
    return llama(n_layers=2, **options)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def read(path: Path) -> torch.Tensor:
    return logits(load_auxiliary(path).model)


def refused(path: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_auxiliary(path)
    (line,) = str(error.value).splitlines()
    return line


def pickled(path: Path, model: Any, shards: int) -> Path:
    """A folder as transformers wrote it before safetensors."""
    model.config.save_pretrained(path)
    state = model.state_dict()
    names = ["pytorch_model.bin"]
    if shards > 1:
        names = [f"pytorch_model-{index + 1:05d}-of-{shards:05d}.bin" for index in range(shards)]
        places = {key: names[index % shards] for index, key in enumerate(state)}
        index = {"metadata": {}, "weight_map": places}
        (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    for number, name in enumerate(names):
        torch.save({key: state[key].clone() for key in list(state)[number::shards]}, path / name)
    return path


def test_shards_of_safetensors(tmp_path: Path) -> None:
    model = tiny()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert torch.equal(read(tmp_path), logits(model))


@pytest.mark.parametrize("shards", [1, 3])
def test_files_that_torch_has_pickled(tmp_path: Path, shards: int) -> None:
    model = tiny()
    folder = pickled(tmp_path, model, shards)
    source = load_auxiliary(folder)
    assert source.provenance["format"] == "pytorch"
    assert torch.equal(logits(source.model), logits(model))


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "harm").touch, ())

    pickled(tmp_path, tiny(), 1)
    torch.save({"weight": Harm()}, tmp_path / "pytorch_model.bin")
    assert "pytorch_model.bin holds more than weights" in refused(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    assert "cannot be loaded" in refused(tmp_path)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_types_keep_their_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    model = tiny().to(dtype)
    model.save_pretrained(tmp_path)
    read = load_auxiliary(tmp_path).model
    assert all(torch.equal(tensor, read.state_dict()[key]) for key, tensor in model.state_dict().items())


def write_gguf(path: Path, kind: Quantisation, blocks: int | None = None) -> None:
    """A Llama of two layers, of widths that every quantisation has blocks for; blocks: what the header claims."""
    write_llama(path, build_for_gguf(), kind, blocks)


def build_for_gguf() -> Any:
    return llama(n_layers=2, n_heads=4, n_kv_heads=2, head_dim=16, d_ff=64, tie_word_embeddings=False)


@pytest.mark.parametrize("kind", [Quantisation.Q4_0, Quantisation.Q8_0, Quantisation.F16])
def test_gguf(tmp_path: Path, kind: Quantisation) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name, dtype=torch.float32)
    source = load_auxiliary(file)
    assert source.provenance["format"] == "gguf"
    assert torch.equal(logits(source.model), logits(theirs))
    assert torch.equal(read(tmp_path), logits(theirs))  # the folder of the only one


def test_a_tokenizer_that_a_gguf_file_lacks_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", Quantisation.F16)
    source = load_auxiliary(tmp_path)
    assert source.tokenizer is None and source.provenance[TOKENIZER_PROBLEM]


@pytest.mark.parametrize(
    ("blocks", "message"), [(10**9, "claims 1000000000 blocks .* 2 are in it"), (0, "claims no blocks")]
)
def test_blocks_that_a_gguf_file_claims(tmp_path: Path, blocks: int, message: str) -> None:
    """They are compared before transformers makes as many layers."""
    write_gguf(tmp_path / "tiny.gguf", Quantisation.F16, blocks)
    with pytest.raises(ModelError, match=message):
        load_auxiliary(tmp_path)


def test_gguf_files_that_end_early_or_lie(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, Quantisation.F16)
    whole = file.read_bytes()
    check_gguf(file)
    counts = struct.pack("<QQ", 10**9, 10**9)
    lies = {
        b"": "it is empty",
        b"PK" + whole[2:]: "does not begin with GGUF",
        whole[:20]: "more than the file holds",
        whole[:300]: "more than the file holds",
        whole[:-5000]: "it is cut short",
        whole[:8] + counts + whole[24:]: "header",
        whole[:4] + struct.pack("<I", 9) + whole[8:]: "its version is 9",
    }
    for content, message in lies.items():
        file.write_bytes(content)
        assert message in refused(file)


def test_several_gguf_files_beside_a_configuration(tmp_path: Path) -> None:
    model_folder(tmp_path, tiny(), with_tokenizer=False)
    (tmp_path / "model.safetensors").unlink()
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name, Quantisation.F16)
    assert "has 2 GGUF files, name the one to read" in refused(tmp_path)


QUANTISED = {
    "bitsandbytes": ({"load_in_4bit": True}, "bitsandbytes"),
    "gptq": ({"bits": 4, "group_size": 128}, "optimum and gptqmodel"),
    "awq": ({"bits": 4, "group_size": 128}, "gptqmodel"),
    "compressed-tensors": ({"format": "pack-quantized"}, "compressed-tensors"),
}


@pytest.mark.parametrize("method", QUANTISED)
def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    entries, packages = QUANTISED[method]
    model_folder(tmp_path, tiny(), with_tokenizer=False)
    change_config(tmp_path, quantization_config={"quant_method": method, **entries})
    monkeypatch.setattr(quantised, "find_spec", lambda _: None)
    message = refused(tmp_path)
    assert f"quantised by {method}" in message and packages in message
    assert f"pip install {packages.replace(' and ', ' ')}" in message
    loaded: Any = load_auxiliary(tmp_path, values=False).model
    assert loaded.config.num_hidden_layers == 2  # shapes need no package


@pytest.mark.parametrize("bits", [4, 8])
def test_bitsandbytes(tmp_path: Path, bits: int) -> None:
    """As transformers' own `dequantize` gives it."""
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    tiny(d_ff=64).save_pretrained(tmp_path / "plain")
    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=config, device_map="cpu")
    model.save_pretrained(tmp_path / "short")
    assert torch.equal(read(tmp_path / "short"), logits(model.dequantize(dtype=torch.float32)))


def test_fp8(tmp_path: Path) -> None:
    """Of blocks with a scale each; transformers needs no package for it."""
    model = build_for_gguf()
    model.save_pretrained(tmp_path)
    state = {}
    expected = build_for_gguf()
    for key, tensor in model.state_dict().items():
        if "_proj" not in key:
            state[key] = tensor
            continue
        scale = tensor.abs().max() / 448
        state[key] = (tensor / scale).to(torch.float8_e4m3fn)
        state[f"{key}_scale_inv"] = scale.reshape(1, 1)
        expected.state_dict()[key].copy_(state[key].float() * scale)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    change_config(tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]})
    assert relative(read(tmp_path), logits(expected)) < 1e-6


ORDER = {"gptq": range(8), "awq": (0, 2, 4, 6, 1, 3, 5, 7)}
"""Which of eight numbers of four bits stands where in an int32."""


def in_eights(numbers: torch.Tensor, method: str) -> torch.Tensor:
    """Numbers of four bits ``[..., 8 n]`` as int32 ``[..., n]``."""
    eights = numbers.long().unflatten(-1, (-1, 8))
    packed = torch.stack([eights[..., at] << 4 * place for place, at in enumerate(ORDER[method])]).sum(0)
    return torch.where(packed >= 2**31, packed - 2**32, packed).int()


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_layers_of_four_bits(tmp_path: Path, method: str) -> None:
    """fp16; groups of 128 columns with a scale each, and 8 for zero. The weights are the same to the bit."""
    pytest.importorskip("gptqmodel", reason="pip install optimum gptqmodel")
    model = llama(n_layers=1, n_kv_heads=4, head_dim=32, d_ff=256).half()
    state = model.state_dict()
    stored = {key: tensor for key, tensor in state.items() if "_proj" not in key}
    for key in state.keys() - stored.keys():
        groups = state[key].float().unflatten(1, (-1, 128))
        scales = (groups.abs().amax(-1) / 7).half()
        codes = (groups / scales[..., None]).round().clamp(-8, 7) + 8
        state[key].copy_(((codes - 8) * scales[..., None]).flatten(1))
        codes = codes.flatten(1).T
        layer = {"scales": scales.T.contiguous()}
        zeros = torch.full_like(layer["scales"], 8)
        if method == "gptq":
            layer |= {"qweight": in_eights(codes.T, method).T.contiguous(), "qzeros": in_eights(zeros - 1, method)}
            layer["g_idx"] = (torch.arange(len(codes)) // 128).int()
        else:
            layer |= {"qweight": in_eights(codes, method), "qzeros": in_eights(zeros, method)}
        stored |= {f"{key.removesuffix('weight')}{part}": tensor for part, tensor in layer.items()}
    model.config.save_pretrained(tmp_path)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    entries = {"quant_method": method, "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    entries |= {"gptq": {"checkpoint_format": "gptq"}, "awq": {"format": "gemm", "zero_point": True}}[method]
    change_config(tmp_path, quantization_config=entries)
    read = load_auxiliary(tmp_path).model
    assert all(torch.equal(tensor, state[key]) for key, tensor in read.state_dict().items())


class Packed(torch.nn.Module):
    """A linear layer whose weight nobody sees, as GPTQ's and AWQ's are."""

    def __init__(self, inner: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.bias = inner.bias
        self.register_buffer("qweight", inner.weight.detach().clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.qweight, self.bias)  # pyright: ignore[reportArgumentType]


def test_layers_that_only_their_package_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their weights are what they make of unit vectors."""

    class Quantiser:
        def remove_quantization_config(self, model: Any) -> None:
            del model.hf_quantizer

    model = tiny(attention_bias=True)
    before = logits(model)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Packed(layer.self_attn.q_proj)
        layer.mlp.down_proj = Packed(layer.mlp.down_proj)
    model.hf_quantizer = Quantiser()

    def not_there(dtype: torch.dtype) -> None:
        raise NotImplementedError

    monkeypatch.setattr(model, "dequantize", not_there)
    monkeypatch.setattr(quantised, "STEP", 7)
    plain = quantised.dequantised(model, "it", "gptq")
    assert not any(isinstance(module, Packed) for module in plain.modules())
    assert relative(logits(plain), before) < 1e-6
    assert isinstance(load_auxiliary(plain).model, torch.nn.Module)


FOUR_BITS = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""The numbers of MXFP4; 32 in a row of a matrix share an exponent, and two stand in a byte, the lower half first."""


def test_mxfp4(tmp_path: Path) -> None:
    """Experts as OpenAI packs them, without the package for its kernels: to the bit what the codes stand for."""
    sizes = {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 32, "head_dim": 16}
    model = tiny_model("gpt_oss", **sizes, layer_types=["full_attention"], num_local_experts=4).bfloat16()
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    right: dict[str, torch.Tensor] = {}
    for key in [key for key in state if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, rows = state.pop(key).shape
        codes = torch.randint(16, (experts, rows, width // 32, 32), generator=generator)
        scales = torch.randint(120, 124, (experts, rows, width // 32), generator=generator)
        state[f"{key}_blocks"] = (codes[..., ::2] + 16 * codes[..., 1::2]).to(torch.uint8)
        state[f"{key}_scales"] = scales.to(torch.uint8)
        right[key] = (FOUR_BITS[codes] * 2.0 ** (scales[..., None] - 127)).flatten(2).transpose(1, 2)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    model.config.save_pretrained(tmp_path)
    kept = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    change_config(tmp_path, quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": kept})
    source = load_auxiliary(tmp_path)
    read = source.model.state_dict()
    assert len(right) == 2
    for key, numbers in right.items():
        assert torch.equal(read[key].float(), numbers), key
    unpacked = [key for key in state if not key.endswith(("_blocks", "_scales"))]
    assert all(torch.equal(read[key], state[key]) for key in unpacked)
    sim = tintc.compile(tmp_path, inner_lr=1e-2, max_length=16)
    with torch.no_grad():
        assert relative(sim(IDS, return_before=True).logits_before, logits(source.model.float())) < 1e-4
