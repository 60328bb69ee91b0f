"""What edits put into files: values, names and tokens that readers have stumbled over, here or elsewhere."""

from __future__ import annotations

from typing import Any

from tintc.ir.core import OPS, TYPE_KINDS

RAW = {
    "@digits": "9" * 5000,
    "@1e999": "1e999",
    "@-1e999": "-1e999",
    "@twice": '{"a": 1, "a": 2}',
    "@deep": "[" * 3000 + "]" * 3000,
    "@surrogate": '"\\ud800"',
    "@comma": "1,",
}
"""Words that stand for JSON, or for none, that Python's `json` does not write."""
VALUES: tuple[Any, ...] = (
    *(None, True, False, "", [], {}),
    *(0, 1, -1, 2, 3, 4, 5, 7, 8, 12, 23, 24, 32, 33, 64, 100, 255, 256, 257, 1000, 65_536, 10**6, 10**9),
    *((1 << 31) - 1, 1 << 31, 1 << 32, 1 << 53, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 10**20, -(1 << 63)),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -0.5, 1e-45, 1e-300, 1e300, 1e30, float("inf"), float("-inf"), float("nan")),
    *("0", "8", "a", "b" * 300, "c" * 70_000, "a..b", ".", "..", "../x", "../outside/model.safetensors", "/etc/passwd"),
    *("all.bin", "model.safetensors", "x.safetensors", "\0", "\u00e9", "\U0001f600", "\n", "a\nb", "%s{0}", "{{ 7 * 7 }}"),
    *("true", "null", "NaN", "float32", "float16", "float64", "bfloat16", "int8", "torch.float32", "fp8", "evil.Evil"),
    *("llama", "gpt2", "tint", "mixtral", "mamba", "bert", "llava", "full", "paper", "none", "linear", "softmax", "ce"),
    *("F64", "F32", "F16", "BF16", "I64", "I8", "U8", "BOOL", "F8_E4M3", "F4", "PICKLE", "dynamic", "yarn", "llama3"),
    *("gelu", "silu", "relu", "eager", "flash_attention_2", "PreTrainedTokenizerFast", "LlamaTokenizer", "BPE"),
    *([0], [1], [8], [0, 0], [0, 1], [1, 0], [0, 1 << 40], [64, 0], [23, 8], [1, 2, 3], [1 << 32, 1 << 32], [-1], [0] * 70),
    *([None], [True], [""], ["x"], ["../x"], [[]], [{}], [[1]], [1] * 10_000, [0.5], {"a": 1}, {"a": []}, {"": None}),
    *({"auto_map": {"AutoConfig": "evil.Evil"}}, {"type": "x"}, {"rope_type": "yarn"}, {"num_hidden_layers": 10**9}),
    *({str(n): n for n in range(3000)}, {"size": 1, "sha256": "0" * 64, "sample": "0" * 64}),
    *({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}),
    *RAW,
)
NAMES = (
    *("auto_map", "quantization_config", "num_labels", "id2label", "label2id", "transformers_weights", "text_config"),
    *("vision_config", "program", "auxiliary", "described", "dtype", "torch_dtype", "architectures", "model_type"),
    *("format_version", "digests", "provenance", "gate_scale", "attn_implementation", "_attn_implementation", "tokenizer"),
    *("rope_scaling", "rope_parameters", "pruned_heads", "tokenizer_class", "num_hidden_layers", "head_dim", "n_layer"),
    *("vocab_size", "hidden_size", "layer_types", "sliding_window", "num_local_experts", "bos_token_id", "pad_token_id"),
    *("eos_token_id", "max_length", "max_new_tokens", "cache_implementation", "stop_strings", "num_beams", "adapters"),
    *("weight_map", "metadata", "files", "__metadata__", "../x", "", "x" * 300, "a..b", "__class__", "self", "kwargs"),
    *("chat_template", "tokenizer_file", "vocab_file", "added_tokens_decoder", "extra_special_tokens", "normalizer"),
    *("model", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding", "new", "gone", "n_steps", "stack"),
)
TOKENS = (
    *("0", "1", "-1", "2", "3", "8", "24", "32", "9" * 5000, "99999999999999999999", "1e999", "NaN", "1.5", "0.0"),
    *("4294967296", "2147483648", "-9223372036854775808", "null", "true", "false", '""', '"x"', '"a..b"', '"\\u0000"'),
    *('"\\ud800"', "[]", "[1, 1]", "[[0]]", "[[1], [2]]", "[[[0]]]", "[[0, 0]]", "[[999999999]]", "{}", '{"a": 1}'),
    *("[" * 100, "{" * 100, "[" * 5000 + "]" * 5000, "%", "@", "%x", "@x", "{", "}", "(", ")", ",", ":", "=", "//", "<"),
    *("return", "yield", "parameter", "tokens<8>", "tokens<0>", "tokens<8x8>", "linear<8x8>", "linear<8x8, bias>"),
    *("norm<8, gain>", "norm<8>", "routed<2x8>", "experts<2x8x8>", "logits<23>", "numbers<1>", "aux.program", "sim.repeat"),
    *(f"{kind}<8>" for kind in TYPE_KINDS),
    *OPS,
)
