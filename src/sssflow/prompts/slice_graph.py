"""The graph of a label map: nodes are the 2-D components of each slice, edges join neighbours.

A connected set of nodes is a 3-D component, and cutting the volume to a window of slices cuts the
graph to a range of nodes. So every window is answered from a few thousand nodes, not from voxels.

Axis letters: s slices, h rows, w columns. A run is a maximal stretch of one class in one row; runs
and their ends are flat positions in the (s,h,w) array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import cc3d
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from sssflow.errors import DataError

Ints = NDArray[np.int64]
Labels = NDArray[np.uint8]

MAX_CLASSES: Final = 127
# In-plane neighbourhood of each 3-D one, and how far (rows, columns) it reaches across slices.
_IN_PLANE: Final[dict[int, Literal[6, 26]]] = {6: 6, 18: 26, 26: 26}
_ACROSS: Final = {
    6: ((0, 0),),
    18: ((-1, 0), (0, 1), (1, 0)),
    26: ((-1, 1), (0, 1), (1, 1)),
}


@dataclass(frozen=True)
class SliceGraph:
    """Nodes sorted by class, slice and first voxel; edges from a slice to the next one.

    Attributes:
        shape_shw: Shape of the label map.
        node_class: Class of each node.
        node_slice: Slice of each node.
        node_area: Pixels of each node.
        edge_start: CSR row pointers: edges of node n are `edge_to[edge_start[n]:edge_start[n+1]]`.
        edge_to: The node at the other end, always one slice further.
        run_start: First position of each run, ascending.
        run_end: Position after each run's last.
        run_node: Node of each run.
    """

    shape_shw: tuple[int, int, int]
    node_class: Ints
    node_slice: Ints
    node_area: Ints
    edge_start: Ints
    edge_to: Ints
    run_start: Ints
    run_end: Ints
    run_node: Ints


def build_slice_graph(labels_shw: Labels, connectivity: int) -> SliceGraph:
    """Build the graph of all classes at once.

    Args:
        labels_shw: Class per voxel, uint8, 0 background, at most 127.
        connectivity: 6, 18 or 26 neighbours.

    Raises:
        DataError: Not a non-empty 3-D uint8 array with classes up to 127.
    """
    labels_shw = _checked(labels_shw)
    start, end, run_class = _runs(labels_shw)
    raw_node = _label_slices(labels_shw, connectivity).reshape(-1)[start]
    count = int(raw_node.max(initial=0))

    first_run: Ints = np.zeros(count + 1, np.int64)
    first_run[raw_node[::-1]] = np.arange(start.size - 1, -1, -1)
    first = first_run[1:]
    order = np.lexsort((first, run_class[first]))
    rank: Ints = np.empty(count + 1, np.int64)
    rank[order + 1] = np.arange(count)
    node = rank[raw_node]
    first = first[order]
    edge_start, edge_to = _edges(start, end, run_class, node, labels_shw.shape, connectivity, count)
    area = np.bincount(node, weights=end - start, minlength=count).astype(np.int64)
    return SliceGraph(
        shape_shw=(labels_shw.shape[0], labels_shw.shape[1], labels_shw.shape[2]),
        node_class=run_class[first].astype(np.int64),
        node_slice=start[first] // (labels_shw.shape[1] * labels_shw.shape[2]),
        node_area=area,
        edge_start=edge_start,
        edge_to=edge_to,
        run_start=start,
        run_end=end,
        run_node=node,
    )


def components_between(graph: SliceGraph, begin: int, stop: int, last: int) -> Ints:
    """Component of each node of a range, as if the other nodes did not exist.

    Args:
        graph: The whole graph.
        begin: First node of the range.
        stop: Node after the range's last; the range holds whole slices of one class.
        last: First node of the range's last slice, whose edges lead out of the range.

    Returns:
        Component index per node, `stop - begin` values from 0.
    """
    count = stop - begin
    pointers = np.minimum(graph.edge_start[begin : stop + 1], graph.edge_start[last])
    if pointers[0] == pointers[-1]:
        return np.arange(count, dtype=np.int64)
    targets = graph.edge_to[pointers[0] : pointers[-1]] - begin
    matrix = csr_array(
        (np.ones(targets.size, np.int8), targets, pointers - pointers[0]), shape=(count, count)
    )
    return np.asarray(connected_components(matrix, directed=False)[1], dtype=np.int64)


def _checked(labels_shw: Labels) -> Labels:
    if labels_shw.ndim != 3 or labels_shw.dtype != np.uint8 or labels_shw.size == 0:
        raise DataError(
            "PCSW needs a label map of a volume.",
            expected="a non-empty uint8 array of 3 axes (slices, rows, columns)",
            found=f"{labels_shw.dtype} of shape {labels_shw.shape}",
        )
    labels_shw = np.ascontiguousarray(labels_shw)
    highest = int(labels_shw.max())
    if highest > MAX_CLASSES:
        raise DataError(
            "A label map holds too many classes.", expected=f"<= {MAX_CLASSES}", found=highest
        )
    return labels_shw


def _runs(labels_shw: Labels) -> tuple[Ints, Ints, Labels]:
    """First position, position after the last, and class of every foreground run, in order."""
    flat = labels_shw.reshape(-1)
    begins = np.empty(flat.size, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins[1:])
    begins[:: labels_shw.shape[2]] = True
    start = np.flatnonzero(begins)
    end = np.append(start[1:], flat.size)
    run_class = flat[start]
    foreground = run_class > 0
    return start[foreground], end[foreground], run_class[foreground]


def _label_slices(labels_shw: Labels, connectivity: int) -> NDArray[Any]:
    """2-D components of all slices in one 3-D pass, numbered from 1 across the volume.

    Odd slices get other values, so that no component reaches from one slice to the next.
    """
    encoded = labels_shw.copy()
    odd = encoded[1::2]
    np.add(odd, np.uint8(128), out=odd, where=odd > 0)
    labelled: NDArray[Any] = cc3d.connected_components(
        encoded, connectivity=_IN_PLANE[connectivity]
    )
    return labelled


def _edges(
    start: Ints,
    end: Ints,
    run_class: Labels,
    node: Ints,
    shape: tuple[int, ...],
    connectivity: int,
    count: int,
) -> tuple[Ints, Ints]:
    """CSR of node pairs in consecutive slices that touch and are of one class, each pair once."""
    slices, rows, columns = shape
    row = start // columns
    pairs: list[Ints] = []
    for row_step, reach in _ACROSS[connectivity]:
        target = row % rows + row_step
        sources = np.flatnonzero((target >= 0) & (target < rows) & (row < (slices - 1) * rows))
        row_begin = (row[sources] + rows + row_step) * columns
        shift = row_begin - row[sources] * columns
        low = np.maximum(start[sources] + shift - reach, row_begin)
        high = np.minimum(end[sources] + shift + reach, row_begin + columns)
        from_run = np.searchsorted(end, low, side="right")
        lengths = np.searchsorted(start, high, side="left") - from_run
        upper = np.repeat(sources, lengths)
        offsets = np.cumsum(lengths) - lengths
        lower = np.arange(upper.size) + np.repeat(from_run - offsets, lengths)
        same = run_class[upper] == run_class[lower]
        pairs.append(node[upper[same]] * np.int64(count) + node[lower[same]])
    unique = np.unique(np.concatenate(pairs))
    tail, head = np.divmod(unique, np.int64(max(count, 1)))
    edge_start = np.searchsorted(tail, np.arange(count + 1)).astype(np.int64)
    return edge_start, head
