"""tintc: compiles Hugging Face decoders into TinT simulators (arXiv 2307.01189)."""

from transformers import AutoConfig, AutoModelForCausalLM

from tintc import masks, reference
from tintc.driver import compile
from tintc.runtime.artefact import load
from tintc.runtime.config import TintConfig
from tintc.runtime.model import TintForCausalLM, TintOutput

AutoConfig.register("tint", TintConfig, exist_ok=True)
AutoModelForCausalLM.register(TintConfig, TintForCausalLM, exist_ok=True)

__version__ = "0.1.0"
__all__ = ["TintConfig", "TintForCausalLM", "TintOutput", "compile", "load", "masks", "reference"]
