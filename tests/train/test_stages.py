"""What the stage bodies of training refuse before they begin."""

import numpy as np
import pytest
from torch import nn

from paretune.data.trees import Example
from paretune.errors import StageError
from paretune.model.forward import PackedModel
from paretune.model.loss import Head
from paretune.study.train import Train
from paretune.train.stages import _check_layout


def test_contexts_are_not_shared_where_the_architecture_cannot_keep_tasks_apart() -> None:
    packed = PackedModel(nn.Linear(1, 1), Head(nn.Linear(1, 1), num_words=1), isolates=False)
    ids = np.arange(4, dtype=np.int32)
    with pytest.raises(StageError, match="Linear cannot keep tasks apart that share a context; write `layout: padded` under"):
        _check_layout(Train(layout="trees"), packed, [Example(ids), Example(ids, 0, ids)])
    _check_layout(Train(layout="padded"), packed, [Example(ids, 0, ids)])
    _check_layout(Train(layout="trees"), packed, [Example(ids)])
