"""What a stage imports that every stage imports: nothing that speaks, or takes long, for a few."""

import subprocess
import sys


def test_bitsandbytes_is_imported_by_what_needs_it_alone():
    code = (
        "import sys, importlib, paretune.pipeline.worker as worker; [importlib.import_module(name) for name in worker.PRELOAD];"
        "import paretune.model.load, paretune.train.stages; assert 'peft' in sys.modules;"
        "assert 'bitsandbytes' not in sys.modules;"
        "from transformers import LlamaConfig, LlamaForCausalLM;"
        "from paretune.model.adapters import add_lora; from paretune.study.methods import TrainLora;"
        "config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2);"
        "add_lora(LlamaForCausalLM(config), TrainLora(r=2), 0); assert 'bitsandbytes' not in sys.modules;"
        "import bitsandbytes.functional"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
