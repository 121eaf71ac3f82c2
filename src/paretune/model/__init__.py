import sys

if "bitsandbytes" not in sys.modules:
    # PEFT imports it at once where it is installed, which takes a while and warns of kernels that nobody has asked for. What
    # needs it here takes it by itself. A name that stands for None is not found, and PEFT remembers that.
    sys.modules["bitsandbytes"] = None  # type: ignore[assignment]
    try:
        from peft.import_utils import is_bnb_available

        is_bnb_available()
    finally:
        del sys.modules["bitsandbytes"]
