# SPDX-License-Identifier: Apache-2.0
"""A virtual environment with the packages of others that a script of this folder needs, made on first use; and the model both sides
read."""
import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOP = HERE.parent.parent
DEFAULT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "kdserved" / "peers"

sys.path[:0] = [str(TOP / "tests" / "e2e"), str(TOP / "clients" / "python")]


def need(packages, argument):
    """packages: import name -> what pip installs. Runs this script again in the environment where they are not importable here."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        folder = Path(argument or DEFAULT)
        python = folder / "bin" / "python"
        if Path(sys.executable) == python.absolute():
            sys.exit("%s still lacks %s" % (folder, ", ".join(missing)))
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages.values()], check=True)
        os.execv(str(python), [str(python), *sys.argv])
    names = [p.split("==")[0].split("[")[0] for p in packages.values()]
    print(", ".join("%s %s" % (name, importlib.metadata.version(name)) for name in names), flush=True)


def model_directory(folder, gguf):
    """A Hugging Face directory: the weights of a GGUF file as f32, or those of the tests' tiny model."""
    if gguf is None:
        import json
        import tiny_model
        tiny_model.write(str(folder))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}))
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    where = {"pretrained_model_name_or_path": str(Path(gguf).parent), "gguf_file": Path(gguf).name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    model.hf_quantizer = None    # it was unpacked while it was read; as a "quantized" model it could not be written
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)
    return folder
