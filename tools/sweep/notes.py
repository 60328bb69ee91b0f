"""What the page of families says besides its tables: why single types do not pass, and what wrappers are.

Read off the types' modelling files of transformers 5.23.
"""

from __future__ import annotations

WHY = {
    "doge": (
        "every score gets a number that is computed from the value of the key's token, `exp(A softplus(W v))` for "
        "each head, and in texts of more than `keep_window_size` tokens all but that many keys are left out by it. "
        "The masks of a program are functions of positions alone. (Up to the window the number would be one more "
        "coordinate of the keys, beside a 1 in the queries; a program has neither the function nor keys of two "
        "sources.)"
    ),
    "gemma3n_text": (
        "several residual streams are mixed at every layer by matrices that each token computes (AltUp), rescaled to "
        "the length of the first stream, and cut by thresholds that are a mean and a standard deviation of the "
        "feed-forward's own numbers. A program has one residual stream and multiplies vectors by constants or "
        "coordinate by coordinate; a matrix that depends on the token is neither. It is no matter of attention."
    ),
    "axk2": (
        "an indexer of its own chooses, for every token, the keys that attention may see. The masks of a program are "
        "functions of positions alone."
    ),
    "dbrx": (
        "experts are computed in a loop over those that the tokens choose, not by transformers' interface for experts."
    ),
    "deepseek_v32": (
        "an indexer of its own chooses, for every token, the keys that attention may see. The masks of a program are "
        "functions of positions alone."
    ),
    "deepseek_v4": (
        "there are several residual streams, which every token mixes, before and after each layer, by a matrix that "
        "it computes. A program has one residual stream, and its matrices are parameters."
    ),
    "dots3_note_text": (
        "an indexer of its own chooses, for every token, the keys that attention may see. The masks of a program are "
        "functions of positions alone."
    ),
    "glm_moe_dsa": (
        "an indexer of its own chooses, for every token, the keys that attention may see. The masks of a program are "
        "functions of positions alone."
    ),
    "hy_v4": (
        "there are several residual streams, which every token mixes, before and after each layer, by a matrix that "
        "it computes. A program has one residual stream, and its matrices are parameters."
    ),
    "inkling_text": (
        "scores get a number for every query and distance, which is computed from the query's token. The biases of a "
        "program's scores are functions of positions alone."
    ),
    "inkling2_text": "what a layer reads is mixed, by an attention of its own, from what earlier layers have made.",
    "jetmoe": (
        "attention's own projections are experts, computed from tokens that are sorted by expert. A program's queries, "
        "keys and values are linear layers."
    ),
    "longcat_flash": (
        "some experts do nothing, and a loop over those that the tokens choose leaves them out; it is not "
        "transformers' interface for experts."
    ),
    "minimax": (
        "its linear attention (lightning attention) is a loop over blocks of 256 tokens inside of a module: there is "
        "no function that could be made known as a recurrence, although it is one, linear in its values."
    ),
    "qwen4_exp": (
        "there are several residual streams, which every token mixes, before and after each layer, by a matrix that "
        "it computes. A program has one residual stream, and its matrices are parameters."
    ),
    "qwen4_exp_text": (
        "there are several residual streams, which every token mixes, before and after each layer, by a matrix that "
        "it computes. A program has one residual stream, and its matrices are parameters."
    ),
    "recurrent_gemma": (
        "its recurrence, linear in what it reads, is a loop over tokens in a method of a module: there is no function "
        "that could be made known."
    ),
    "rwkv": (
        "its recurrence is a loop over tokens, and its result a quotient of two sums of values and of weights; "
        "division by a value is no operation of a program."
    ),
    "xlstm": (
        "its memory is read through a division by the larger of two values that both depend on the text, which is no "
        "operation of a program."
    ),
    "zaya": (
        "convolutions over queries and keys mix the numbers of a head, and the router's rule for weights is none that "
        "tintc knows."
    ),
}
"""Of types that are refused, why no pattern takes them."""

WRAPPERS = (
    "A model of images and text, from a folder or an object, is compiled as the decoder of text inside, on token ids "
    "alone: `tintc compile` says so, and a simulator refuses the tokens that stand for an image, a video or a sound. "
    "What is compared is the whole model on texts, padding included. Of the 97 types that transformers registers for "
    "images and text, these pass on tiny random configurations in fp64, to 1e-6 (they drop to fp32 inside): "
    "aya_vision, cohere2_vision, cosmos3_edge, cosmos3_omni, deepseek_vl, deepseek_vl_hybrid, fuyu, gemma3, gemma4, "
    "gemma4_unified, git, glm46v, glm4v, glm_ocr, glmga, got_ocr2, hyperclovax_vision_v2, idefics2, idefics3, "
    "internvl, janus, kimi_k25, lfm2_vl, lighton_ocr, llava, llava_next, llava_next_video, llava_onevision, "
    "mistral3, mllama, muse_glimmer, ovis2, paddleocr_vl, paligemma, pp_chart2table, qianfan_ocr, "
    "qwen2_5_omni_thinker, qwen2_5_vl, qwen2_vl, qwen3_vl, shieldgemma2, smolvlm, video_llama_3, video_llava, "
    "vipllava. Refused are those whose decoder is refused, those that read with an encoder, and those that do not "
    "run without an image (blip, blip-2, idefics, instructblip). Of 21 types no tiny model was made."
)
"""What passes among models of images and text, by hand: `tools/sweep` has decoders alone."""
