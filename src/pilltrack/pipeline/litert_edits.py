"""What the exporter cannot be asked for, changed in the `.tflite` that it wrote.

No answer changes by it, not by a bit: a map that is doubled is doubled by layers that the device's
fast kernels know, and a network may take several images at once.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from pathlib import Path
from typing import Any

_TIMES = 2  # what a map grows by in each direction


def edit(model: Path, open_batches: Collection[str]) -> None:
    """Lay repeated values out anew, and open the first axis under those signatures, in the file.

    What is under such a signature must not hold a layer that fixes how many images there are.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model(str(model))
    for subgraph in content.subgraphs:
        _double_by_layout(content, subgraph)
    for definition in content.signatureDefs:
        if definition.signatureKey.decode() in open_batches:
            tensors = content.subgraphs[definition.subgraphIndex].tensors
            for end in (*definition.inputs, *definition.outputs):
                tensor = tensors[end.tensorIndex]
                tensor.shapeSignature = [-1, *(int(length) for length in tensor.shape[1:])]
    flatbuffer_utils.write_model(content, str(model))


def _double_by_layout(content: Any, subgraph: Any) -> None:
    """Each value four times as channels, and these laid out as 2 x 2: a map doubled.

    XNNPACK has no kernel for the layer that this replaces: with three of them the network fell
    into four parts, with a copy between each two (docs/lab-log.md).
    """
    from ai_edge_litert import schema_py_generated as schema

    builtin, options = schema.BuiltinOperator, schema.BuiltinOptions
    operators = []
    for operator in subgraph.operators:
        code = content.operatorCodes[operator.opcodeIndex]
        if max(code.builtinCode, code.deprecatedBuiltinCode) != builtin.RESIZE_NEAREST_NEIGHBOR:
            operators.append(operator)
            continue
        taken, given = (subgraph.tensors[ends[0]] for ends in (operator.inputs, operator.outputs))
        if list(given.shape[1:3]) != [_TIMES * length for length in taken.shape[1:3]]:
            operators.append(operator)
            continue
        repeated = copy.deepcopy(taken)
        repeated.shape = [*taken.shape[:3], _TIMES**2 * taken.shape[3]]
        repeated.name = taken.name + b"_repeated"
        repeated.buffer = 0  # the empty one: it is computed
        subgraph.tensors.append(repeated)
        number = len(subgraph.tensors) - 1
        together, apart = schema.ConcatenationOptionsT(), schema.DepthToSpaceOptionsT()
        together.axis, apart.blockSize = 3, _TIMES
        operators += [
            _operator(content, builtin.CONCATENATION, [operator.inputs[0]] * _TIMES**2, [number],
                      options.ConcatenationOptions, together),
            _operator(content, builtin.DEPTH_TO_SPACE, [number], list(operator.outputs),
                      options.DepthToSpaceOptions, apart),
        ]  # fmt: skip
    subgraph.operators = operators


def _operator(
    content: Any, builtin: int, inputs: list[int], outputs: list[int], kind: int, options: Any
) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin  # both are below 127
    code.version = 2  # of both the first that knows int8
    content.operatorCodes.append(code)
    operator = schema.OperatorT()
    operator.opcodeIndex = len(content.operatorCodes) - 1
    operator.inputs, operator.outputs = inputs, outputs
    operator.builtinOptionsType, operator.builtinOptions = kind, options
    return operator
