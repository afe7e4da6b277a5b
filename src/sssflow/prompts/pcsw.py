"""PCSW, Physical Constraints with a Sliding Window: from a label map to box and point prompts.

SSS (arXiv 2506.08949), section on prompts; the continuity score and tau follow its authors' code
fragment. An organ is one piece across neighbouring slices, so a window of slices whose foreground
is mostly one component is believed, and only that component is prompted.

Per foreground class, with S slices:

1. Window lengths N from max(2, S//3) to max(3, S//2), both at most S. The search starts at the
   median (N_min + N_max)//2 and goes upwards (`search: both` alternates around it).
2. A window of N slices slides by one slice. Continuity C = voxels of the largest component
   *inside the window* / all voxels of the class in the window; 0 where there are none.
3. Windows with C >= tau pass, if their largest component has `min_component_voxels`.
4. `selection: best` takes, over all windows of the first length at which any passes (over all
   searched lengths with `best_over: all`), the one that is first in this total order: higher C,
   more foreground voxels, shorter, earlier. `first` takes the first that passes, lengths in order
   of the search, starts ascending.
5. Only the largest component of that window is kept; of equally large ones that with the first
   voxel in slice, row, column order.
6. Prompts on every `prompt_freq`-th slice of the window, counted from the component's slice of
   largest area (the lowest of equals), where the component is.

The work is done on the graph of 2-D components (slice_graph.py). A window is labelled only while
an exact upper bound of its C can still win.
Axis letters: s slices, h rows, w columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sssflow.contracts.prompts import ObjectPrompts, SlicePrompt
from sssflow.errors import UsageError
from sssflow.prompts.boxes import (
    Box,
    Mask,
    centroid,
    interior_point,
    widen,
)
from sssflow.prompts.config import PcswConfig
from sssflow.prompts.slice_graph import (
    MAX_CLASSES,
    Ints,
    Labels,
    SliceGraph,
    build_slice_graph,
    components_between,
)

_BLOCK_CELLS = 1 << 22
Order = tuple[float, ...]


@dataclass(frozen=True)
class Window:
    """An accepted window and its kept component.

    Attributes:
        start: First slice.
        length: Slices.
        continuity: C, 0 to 1.
        nodes: Nodes of the kept component, ascending.
    """

    start: int
    length: int
    continuity: float
    nodes: Ints


@dataclass(frozen=True)
class _Candidates:
    """Windows that may still win, best possible first.

    `order` is the place that a window would take if its continuity reached the bound.
    """

    order: tuple[Order, ...]
    start: tuple[int, ...]
    length: tuple[int, ...]
    foreground: tuple[int, ...]


def select_prompts(
    labels_shw: Labels, config: PcswConfig, *, class_names: Sequence[str] | None = None
) -> tuple[ObjectPrompts, ...]:
    """Prompts of every foreground class of one volume, sorted by class.

    Args:
        labels_shw: Arg-max map, uint8, 0 background.
        config: Settings.
        class_names: Index = label, "background" first. Without it the classes are 1 to the
            highest label present, named by their number.

    Returns:
        One entry per class that gets a prompt. A class without window gives a prompt of its slice
        of largest area, with `accepted=False` (`fallback`); an absent class gives none, or the
        whole middle slice (`on_empty`).

    Raises:
        DataError: Not a non-empty 3-D uint8 array, or a class above 127.
        UsageError: `tau_per_class` names an unknown class, or a label has no name.
    """
    graph = build_slice_graph(labels_shw, config.connectivity)
    highest = int(graph.node_class.max(initial=0))
    names = tuple(class_names) if class_names is not None else _numbered(highest)
    if not highest < len(names) <= MAX_CLASSES + 1:
        raise UsageError(
            "Labels and class names do not match.",
            expected=f"{highest + 1} to {MAX_CLASSES + 1} names",
            found=f"{len(names)} names",
        )
    taus = class_taus(config, names)
    found = (_object_of_class(graph, k, taus[k], config) for k in range(1, len(names)))
    return tuple(item for item in found if item is not None)


def class_taus(config: PcswConfig, class_names: Sequence[str]) -> tuple[float, ...]:
    """The tau of each class index; names and indices in `tau_per_class` both count.

    Raises:
        UsageError: A key is neither the name nor the index of a foreground class.
    """
    taus = [config.tau] * len(class_names)
    index_of = {str(k): k for k in range(1, len(class_names))}
    index_of |= {name: k for k, name in enumerate(class_names) if k > 0}
    for key, tau in config.tau_per_class.items():
        if key not in index_of:
            raise UsageError(
                "tau_per_class names an unknown class.",
                where="pcsw.tau_per_class",
                expected=", ".join(class_names[1:]),
                found=key,
            )
        taus[index_of[key]] = tau
    return tuple(taus)


def window_lengths(slices: int, search: str) -> tuple[int, ...]:
    """Window lengths in the order of the search; one slice gives (1,), two give (2,)."""
    shortest = min(max(2, slices // 3), slices)
    longest = min(max(3, slices // 2), slices)
    median = (shortest + longest) // 2
    lengths = range(shortest, longest + 1)
    if search == "both":
        return tuple(sorted(lengths, key=lambda n: (abs(n - median), -n)))
    return tuple(n for n in lengths if n >= median)


def find_window(
    graph: SliceGraph, class_index: int, tau: float, config: PcswConfig
) -> Window | None:
    """The accepted window of a class (steps 1 to 5 of this file's head), None if none passes."""
    slices = graph.shape_shw[0]
    # Nodes are sorted by class, then slice: entry i is the class's first node at slice >= i.
    keys = graph.node_class * slices + graph.node_slice
    first_node = np.searchsorted(keys, class_index * slices + np.arange(slices + 1))
    candidates = _candidates(graph, first_node, tau, config)
    best: Window | None = None
    best_order: Order = ()
    for i, optimistic in enumerate(candidates.order):
        if best is not None and optimistic >= best_order:
            break
        start, length = candidates.start[i], candidates.length[i]
        begin, last, stop = (
            int(first_node[j]) for j in (start, start + length - 1, start + length)
        )
        nodes, voxels = _largest_component(graph, begin, last, stop)
        continuity = voxels / candidates.foreground[i]
        if continuity < tau or voxels < config.min_component_voxels:
            continue
        order = _order(config, optimistic[0], continuity, candidates.foreground[i], length, start)
        if best is None or order < best_order:
            best, best_order = Window(start, length, continuity, nodes), order
    return best


def _candidates(graph: SliceGraph, first_node: Ints, tau: float, config: PcswConfig) -> _Candidates:
    """Windows whose bound reaches tau, sorted by the place they could take."""
    slices = first_node.size - 1
    begin, stop = int(first_node[0]), int(first_node[-1])
    area = graph.node_area[begin:stop]
    at = graph.node_slice[begin:stop]
    foreground = _cumulative(np.bincount(at, weights=area, minlength=slices)[None])[0]
    lengths = window_lengths(slices, config.search)
    voxels = [foreground[n:] - foreground[:-n] for n in lengths]
    fewest = min(float(v[v > 0].min(initial=np.inf)) for v in voxels)
    whole = components_between(graph, begin, stop, stop)
    # Less than tau of the emptiest window is less than tau of every window.
    total = np.bincount(whole, weights=area)
    large = np.flatnonzero(total / fewest >= tau)
    bounds = _largest_possible(whole, large, at, area, slices, lengths)
    rows: list[tuple[Order, int, int, int]] = []
    for rank, length in enumerate(lengths):
        share = np.divide(
            bounds[rank], voxels[rank], out=np.zeros(voxels[rank].size), where=voxels[rank] > 0
        )
        for start in np.flatnonzero(share >= tau).tolist():
            size = int(voxels[rank][start])
            order = _order(config, rank, float(share[start]), size, length, start)
            rows.append((order, start, length, size))
    rows.sort()
    columns = zip(*rows, strict=True) if rows else iter(((), (), (), ()))
    return _Candidates(*(tuple(column) for column in columns))


def _largest_possible(
    whole: Ints, large: Ints, at: Ints, area: Ints, slices: int, lengths: Sequence[int]
) -> list[NDArray[np.float64]]:
    """Per length and start of a window: the most voxels that one of `large` has in it.

    `large` are components of the whole volume. A component of the window lies in one of the whole
    volume, so it cannot be larger. Blocks bound the memory where noise makes very many components.
    """
    bounds = [np.zeros(slices - length + 1) for length in lengths]
    place: Ints = np.full(int(whole.max(initial=-1)) + 1, -1, np.int64)
    place[large] = np.arange(large.size)
    row = place[whole]
    block = max(_BLOCK_CELLS // slices, 1)
    for low in range(0, large.size, block):
        count = min(block, large.size - low)
        inside = (row >= low) & (row < low + count)
        cells = (row[inside] - low) * slices + at[inside]
        table = np.bincount(cells, weights=area[inside], minlength=count * slices)
        total = _cumulative(table.reshape(count, slices))
        for bound, length in zip(bounds, lengths, strict=True):
            np.maximum(bound, (total[:, length:] - total[:, :-length]).max(axis=0), out=bound)
    return bounds


def _cumulative(table: NDArray[Any]) -> NDArray[np.float64]:
    """Sums of the first 0, 1, … columns; exact, as all values are whole and below 2^53."""
    sums = np.zeros((table.shape[0], table.shape[1] + 1))
    np.cumsum(table, axis=1, out=sums[:, 1:])
    return sums


def _order(
    config: PcswConfig, rank: float, continuity: float, voxels: int, length: int, start: int
) -> Order:
    """Place of a window in the total order of the selection, lowest first."""
    if config.selection == "first":
        return (rank, start)
    if config.best_over == "length":
        return (rank, -continuity, -voxels, length, start)
    return (0.0, -continuity, -voxels, length, start)


def _largest_component(graph: SliceGraph, begin: int, last: int, stop: int) -> tuple[Ints, int]:
    """Nodes and voxels of the largest component of a range of nodes, which is not empty."""
    component = components_between(graph, begin, stop, last)
    size = np.bincount(component, weights=graph.node_area[begin:stop])
    first = int(np.argmax(size[component] == size.max()))
    nodes: Ints = np.flatnonzero(component == component[first]) + begin
    return nodes, int(size.max())


def _object_of_class(
    graph: SliceGraph, class_index: int, tau: float, config: PcswConfig
) -> ObjectPrompts | None:
    """Prompts of one class, None where it gets none."""
    nodes = np.flatnonzero(graph.node_class == class_index)
    if nodes.size == 0:
        return _whole_slice(graph, class_index, config) if config.on_empty == "full_box" else None
    window = find_window(graph, class_index, tau, config)
    if window is None:
        if config.fallback == "skip":
            return None
        return _largest_slice(graph, class_index, nodes, config)
    area = np.bincount(graph.node_slice[window.nodes], weights=graph.node_area[window.nodes])
    anchor = int(np.argmax(area))
    step = config.prompt_freq if config.prompt_slices == "every" else graph.shape_shw[0]
    chosen = [i for i in np.flatnonzero(area).tolist() if (i - anchor) % step == 0]
    prompts = (
        _prompt(index, corner, crop_hw, graph.shape_shw, config, accepted=True)
        for index, corner, crop_hw in _crops(graph, window.nodes, chosen)
    )
    return ObjectPrompts(
        class_index=class_index,
        continuity=window.continuity,
        window_start=window.start,
        window_length=window.length,
        accepted=True,
        component_voxels=int(area.sum()),
        slices=tuple(prompts),
    )


def _largest_slice(
    graph: SliceGraph, class_index: int, nodes: Ints, config: PcswConfig
) -> ObjectPrompts | None:
    """Everything of the class on its slice of largest area (the lowest of equals).

    Many specks are no object: of the slices those alone count that have a component of
    `min_component_voxels`; None if there are none.
    """
    at, size = graph.node_slice[nodes], graph.node_area[nodes]
    area = np.bincount(at, weights=size)
    solid = np.unique(at[size >= config.min_component_voxels])
    if solid.size == 0:
        return None
    index = int(solid[np.argmax(area[solid])])
    _, corner, crop_hw = next(_crops(graph, nodes, [index]))
    return ObjectPrompts(
        class_index=class_index,
        continuity=0.0,
        window_start=-1,
        window_length=0,
        accepted=False,
        component_voxels=int(area[index]),
        slices=(_prompt(index, corner, crop_hw, graph.shape_shw, config, accepted=False),),
    )


def _whole_slice(graph: SliceGraph, class_index: int, config: PcswConfig) -> ObjectPrompts:
    """The box of the whole middle slice and its centre: what the fragment asks of an empty map."""
    slices, height, width = graph.shape_shw
    has_point = config.point != "none"
    prompt = SlicePrompt(
        slice_index=slices // 2,
        box_xyxy_px=(0.0, 0.0, width - 1.0, height - 1.0),
        points_xy_px=(((width - 1) / 2, (height - 1) / 2),) if has_point else (),
        point_labels=(1,) if has_point else (),
    )
    return ObjectPrompts(
        class_index=class_index,
        continuity=0.0,
        window_start=-1,
        window_length=0,
        accepted=False,
        component_voxels=0,
        slices=(prompt,),
    )


def _crops(
    graph: SliceGraph, nodes: Ints, chosen: Sequence[int]
) -> Iterator[tuple[int, tuple[int, int], Mask]]:
    """Slice, (x, y) of the crop's corner, and the nodes' mask cropped to its box, per slice."""
    _, height, width = graph.shape_shw
    is_member = np.zeros(graph.node_area.size, bool)
    is_member[nodes] = True
    runs = np.flatnonzero(is_member[graph.run_node])
    start, end = graph.run_start[runs], graph.run_end[runs]
    for index in chosen:
        low, high = np.searchsorted(start, [index * height * width, (index + 1) * height * width])
        row, left = np.divmod(start[low:high], width)
        right = left + (end[low:high] - start[low:high])
        x0, y0 = int(left.min()), int(row[0])
        # +1 where a run begins, -1 after its end: the running sum along a row is the mask.
        steps = np.zeros((int(row[-1]) - y0 + 1, int(right.max()) - x0 + 1), np.int8)
        steps[row - y0, left - x0] = 1
        steps[row - y0, right - x0] -= 1
        yield index, (x0, y0 - index * height), np.cumsum(steps, axis=1, dtype=np.int8)[:, :-1] > 0


def _prompt(
    index: int,
    corner_xy: tuple[int, int],
    crop_hw: Mask,
    shape_shw: tuple[int, int, int],
    config: PcswConfig,
    *,
    accepted: bool,
) -> SlicePrompt:
    x0, y0 = corner_xy
    box: Box = (x0, y0, x0 + crop_hw.shape[1] - 1, y0 + crop_hw.shape[0] - 1)
    wide = widen(box, config.box_margin_px, shape_shw[1:])
    points: tuple[tuple[float, float], ...] = ()
    if config.point == "interior":
        x, y = interior_point(crop_hw)
        points = ((float(x + x0), float(y + y0)),)
    elif config.point == "center" and accepted:
        points = (((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),)
    elif config.point == "center":
        cx, cy = centroid(crop_hw)
        points = ((cx + x0, cy + y0),)
    return SlicePrompt(
        slice_index=index,
        box_xyxy_px=(float(wide[0]), float(wide[1]), float(wide[2]), float(wide[3])),
        points_xy_px=points,
        point_labels=(1,) * len(points),
    )


def _numbered(highest: int) -> tuple[str, ...]:
    return ("background", *(str(k) for k in range(1, highest + 1)))
