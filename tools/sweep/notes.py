"""What the page of families says besides its tables: why single types do not pass, and what wrappers are."""

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
}
"""Of dense types that are refused, why no pattern takes them."""

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
