"""What transformers makes anew in every process that loads a model; the server that forks the workers makes it once for all."""

from contextlib import suppress

with suppress(ImportError):
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    get_checkpoint_conversion_mapping("")  # a thousand patterns of weights that are called otherwise
