"""Shortest routes stitched from recorded pieces: how short episodes teach long ways.

Every episode is cut into hops of `stride` steps. Hops follow one another where the recording does,
and also where one's end lies within `splice_radius` of another's start, if that one moves. A splice
costs twice the time that its gap takes at the data's usual speed, so that routes do not profit from
jumping.
Dijkstra's algorithm from a set of goal states then gives, for every recorded state, the next hop of
a shortest route.

Only states and times of the data are used: no map, no simulator. (Stitching by a graph over the
data is the idea of SCoTS, arXiv:2506.00895, and TTGS, arXiv:2510.07257; there a learnt distance
picks the pieces. Distance in observation space is enough where nearby observations are nearby in
time: mazes.)
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import KDTree

from lmdiff.data.episodes import Episodes
from lmdiff.errors import UserError

_MAX_NODES = 60_000  # recorded states in the graph; more are thinned out by episode
_ENOUGH_NODES = 25_000  # little data is cut at several offsets until there are as many
_NEIGHBOURS = 24  # splices tried per state
_RESTING = 0.2  # hops shorter than this share of the usual ones are rest
_SPLICE_COST = 2.0  # times the gap's usual travel time


@dataclass(frozen=True)
class Hops:
    """Recorded states `stride` steps apart, in episode order."""

    states: np.ndarray
    """[N, observation]"""
    actions: np.ndarray
    """[N, stride, action]: what was done from each state; zeros where nothing follows."""
    passed: np.ndarray
    """[N, stride, observation]: where each action led; the last is where the next state is."""
    followed: np.ndarray
    """[N] bool: state n + 1 follows state n in the recording."""
    stride: int

    @cached_property
    def length(self) -> float:
        """Usual displacement of a hop, in observation units, however often the data rests.

        Hops count as much as they are long: OGBench's `stitch` data rests most of its time.
        """
        lengths = self._lengths(np.flatnonzero(self.followed))
        if not lengths.any():
            return 0.0
        return float(np.quantile(lengths, 0.5, weights=lengths, method="inverted_cdf"))

    @cached_property
    def moving(self) -> np.ndarray:
        """Indices of the states from where a hop leads somewhere else."""
        index = np.flatnonzero(self.followed)
        return index[self._lengths(index) >= _RESTING * self.length]

    @property
    def speed(self) -> float:
        """Usual displacement per environment step, in observation units."""
        return self.length / self.stride

    @property
    def splice_cost(self) -> float:
        """Environment steps that a gap of one observation unit costs."""
        return _SPLICE_COST / (self.speed or 1.0)  # 0: nothing moves, nothing is joined

    def _lengths(self, index: np.ndarray) -> np.ndarray:
        return np.linalg.norm(self.states[index + 1] - self.states[index], axis=1)


def cut_hops(episodes: Episodes, stride: int, seed: int, limit: int = _MAX_NODES) -> Hops:
    """Cut episodes into hops, from several offsets each; episodes past `limit` states are left out.

    Overlapping cuts (every quarter of a stride) make the most of little data: routes choose among
    more pieces near every place.

    Raises:
        UserError: all episodes are shorter than a hop.
    """
    rng = np.random.default_rng([seed, stride])
    states, actions, passed, followed, count = [], [], [], [], 0
    total = sum(len(recorded) for recorded in episodes.actions)
    # Up to one every quarter of a stride.
    cuts = int(np.clip(round(_ENOUGH_NODES * stride / max(total, 1)), 1, min(4, stride)))
    for episode in rng.permutation(len(episodes.actions)):
        recorded = episodes.actions[episode]
        first = int(rng.integers(stride))
        for cut in range(cuts):
            offset = (first + cut * stride // cuts) % stride
            hops = (len(recorded) - offset) // stride
            if hops < 1:
                continue
            span = slice(offset, offset + hops * stride)
            pieces = recorded[span].reshape(hops, stride, -1)
            seen = episodes.observations[episode]
            led = seen[offset + 1 : span.stop + 1].reshape(hops, stride, -1)
            states.append(seen[offset : span.stop + 1 : stride])
            passed.append(np.concatenate([led, np.repeat(led[-1:, -1:], stride, 1)]))
            actions.append(np.concatenate([pieces, np.zeros_like(pieces[:1])]))
            followed.append(np.arange(hops + 1) < hops)
            count += hops + 1
        if count >= limit:
            break
    if not states:
        raise UserError(
            f"The data has no episode as long as one hop (denoiser.stride = {stride} steps)."
        )
    return Hops(
        states=np.concatenate(states),
        actions=np.concatenate(actions),
        passed=np.concatenate(passed),
        followed=np.concatenate(followed),
        stride=stride,
    )


@dataclass(frozen=True)
class Routes:
    """Shortest ways through the hops to each of G goal states."""

    goals: np.ndarray
    """[G] indices of goal states."""
    following: np.ndarray
    """[G, N] int32: the state that a route's next hop (and splice) leads to; the goal leads to
    itself, and negative is nowhere."""
    steps_to_goal: np.ndarray
    """[G, N] float32: environment steps to the goal; inf where there is no way."""


def shortest_routes(hops: Hops, goals: np.ndarray, splice_radius: float) -> Routes:
    """Dijkstra from every goal over recorded hops and splices.

    Args:
        hops: the recorded pieces, N states.
        goals: [G] indices of goal states.
        splice_radius: states closer than this may be joined, in observation units.
    """
    count, recorded = len(hops.states), np.flatnonzero(hops.followed)
    # From each hop's end, to itself (no splice) and to neighbours from where a hop leads on: who
    # rests can leave, but no route goes on by resting.
    useful = np.union1d(hops.moving, goals)
    nearest = KDTree(hops.states[useful]).query(
        hops.states[recorded + 1],
        k=_NEIGHBOURS,
        distance_upper_bound=splice_radius,
    )
    gap, neighbour = map(np.asarray, nearest)
    near = np.isfinite(gap)
    source = np.concatenate([recorded, np.broadcast_to(recorded[:, None], near.shape)[near]])
    target = np.concatenate([recorded + 1, useful[neighbour[near]]])
    splice = np.concatenate([np.zeros(len(recorded)), gap[near]]) * hops.splice_cost
    # A neighbour may be the hop's own end: keep one edge a pair (csr_matrix would add them up).
    _, once = np.unique(source * count + target, return_index=True)
    # Edges are reversed, since distances are wanted *to* the goals.
    graph = csr_matrix(
        (hops.stride + splice[once], (target[once], source[once])), shape=(count, count)
    )
    following = np.empty((len(goals), count), np.int32)
    steps = np.empty((len(goals), count), np.float32)
    for row, goal in enumerate(goals):
        steps[row], following[row] = dijkstra(graph, indices=goal, return_predecessors=True)
        following[row, goal] = goal
    return Routes(goals=goals, following=following, steps_to_goal=steps)
