"""The cut: any timm backbone as a frozen trunk below and trainable stages above, exactly.

torch.fx with, as leaf, every module whose parameters lie in one of the backbone's own coarse groups. fx's default
leaves also give a difference of 0, but leave a stage's BatchNorm on the wrong side: so it is asserted which parameters
lie where. Not for backbones whose forward branches on values; those can be used whole (cut 0).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from timm.models._manipulate import group_with_matcher
from torch import Tensor, fx, nn


class CannotCut(ValueError):
    """This backbone has no place where one tensor alone crosses."""


class Stages:
    """A backbone's parameters in stages, the stem first; the pooling and what is left of the head in the last."""

    def __init__(self, backbone: nn.Module) -> None:
        names = [name for name, _ in backbone.named_parameters()]
        of = _grouped(backbone, names)
        order = {group: i for i, group in enumerate(sorted(set(of.values())))}
        self.of = {name: order[of[name]] for name in names}
        self.num = len(order)

    def above(self, cut: int) -> set[str]:
        """Names of the parameters above a cut."""
        return {name for name, stage in self.of.items() if stage >= self.num - cut}

    def of_module(self, prefix: str) -> set[int]:
        """The stages that hold parameters of a module, by its dotted path."""
        return {stage for name, stage in self.of.items() if name == prefix or name.startswith(f"{prefix}.")}


def _grouped(backbone: nn.Module, names: list[str]) -> dict[str, int]:
    """Parameter -> group; what shares a group with the classifier (absent here) joins the group before."""
    try:
        matcher = backbone.group_matcher(coarse=True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # a module that is not timm's, and timm's RDNet
        return dict.fromkeys(names, 0)
    classifiers = getattr(backbone, "pretrained_cfg", {}).get("classifier") or "classifier"
    classifier = classifiers if isinstance(classifiers, str) else classifiers[0]
    probe = f"{classifier}.__absent__"
    groups: dict[str, int] = group_with_matcher(((name, None) for name in [*names, probe]), matcher, reverse=True)
    last = groups.pop(probe)
    before = max((group for group in groups.values() if group < last), default=last)
    return {name: before if group == last else group for name, group in groups.items()}


class _Whole(nn.Module):
    """Gives every argument but the image its default, so that fx sees one input."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Features of normalised images [N, 3, S, S]."""
        features: Tensor = self.backbone(images)
        return features


_ROOT = "backbone."


class _Tracer(fx.Tracer):
    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.stages = stages

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name == _ROOT.rstrip("."):
            return False
        return len(self.stages.of_module(module_qualified_name.removeprefix(_ROOT))) <= 1


class Cutter:
    """A traced backbone that can be taken apart at any of its cuts."""

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone, self.stages = backbone, Stages(backbone)
        try:
            graph = _Tracer(self.stages).trace(_Whole(backbone))
        except Exception as error:  # fx raises whatever the model's own code raises on a proxy
            raise CannotCut(f"torch.fx cannot follow its forward ({type(error).__name__}: {error})") from error
        self.image, self.nodes, self.result = _read(graph)
        self._constant = _constants(self.nodes, self.image)
        self._least = self._levels_asap()
        self._most = self._levels_alap()

    @property
    def max_cut(self) -> int:
        """The deepest cut: the normalised image itself crosses, everything learns."""
        return self.stages.num

    def crossing(self, cut: int) -> fx.Node:
        """The node whose value alone crosses a cut."""
        if cut == 0:
            return self.result
        boundary = self.stages.num - cut
        for level in (self._least, self._most):
            found = self._crossing(level, boundary)
            if len(found) == 1:
                return found[0]
        raise CannotCut(f"{len(found)} values cross below the last {cut} stages")

    def below(self, cuts: Sequence[int]) -> fx.GraphModule:
        """Normalised images -> a tuple of the activations at these cuts; shares the backbone's modules."""
        graph, copied = fx.Graph(), {}
        copied[self.image] = graph.placeholder("images")
        ends = [self.crossing(cut) for cut in cuts]
        self._copy(graph, copied, ends)
        graph.output(tuple(copied[end] for end in ends))
        module = fx.GraphModule(self.backbone, graph, class_name="Below")
        self._assert_side(module, set(self.stages.of) - self.stages.above(min(cuts)))
        return module

    def above(self, cut: int) -> nn.Module:
        """Activation at a cut -> features [N, F]; a copy of the backbone's modules above, under their own names."""
        if cut == 0:
            return nn.Identity()
        graph = fx.Graph()
        copied = {self.crossing(cut): graph.placeholder("activation")}
        self._copy(graph, copied, [self.result])
        graph.output(copied[self.result])
        module = fx.GraphModule(self.backbone, graph, class_name="Above")
        self._assert_side(module, self.stages.above(cut))
        return copy.deepcopy(module)

    def _assert_side(self, module: nn.Module, expected: set[str]) -> None:
        found = {name for name, _ in module.named_parameters()}
        if found != expected:
            odd = sorted(found ^ expected)
            raise CannotCut(f"{len(odd)} parameters are on the wrong side of the cut, e.g. {odd[0]}")

    def _copy(self, graph: fx.Graph, copied: dict[fx.Node, fx.Node], ends: Iterable[fx.Node]) -> None:
        needed: set[fx.Node] = set()
        waiting = list(ends)
        while waiting:
            node = waiting.pop()
            if node in needed or node in copied:
                continue
            needed.add(node)
            waiting.extend(node.all_input_nodes)
        if self.image in needed:
            raise CannotCut("the image itself is used above the cut")
        for node in self.nodes:
            if node in needed:
                copied[node] = graph.node_copy(node, lambda n: copied[n])
                if isinstance(node.target, str) and node.op in ("call_module", "get_attr"):
                    copied[node].target = node.target.removeprefix(_ROOT)

    def _own(self, node: fx.Node) -> int:
        if node.op not in ("call_module", "get_attr"):
            return 0
        return max(self.stages.of_module(str(node.target).removeprefix(_ROOT)), default=0)

    def _has_parameters(self, node: fx.Node) -> bool:
        return node.op in ("call_module", "get_attr") and bool(
            self.stages.of_module(str(node.target).removeprefix(_ROOT))
        )

    def _levels_asap(self) -> dict[fx.Node, int]:
        level: dict[fx.Node, int] = {self.image: -1}
        for node in self.nodes:
            if node is not self.image:
                level[node] = max([self._own(node), *(level[n] for n in node.all_input_nodes)])
        return level

    def _levels_alap(self) -> dict[fx.Node, int]:
        """As _levels_asap, but what has no parameters is moved up to its first user."""
        level = dict(self._least)
        for node in reversed(self.nodes):
            if node is not self.image and not self._has_parameters(node):
                level[node] = min((level[u] for u in node.users if u in level), default=level[node])
        return level

    def _crossing(self, level: dict[fx.Node, int], boundary: int) -> list[fx.Node]:
        inside = [n for n in self.nodes if level[n] < boundary and n not in self._constant]
        return [n for n in inside if any(level.get(user, -1) >= boundary for user in n.users)]


def _read(graph: fx.Graph) -> tuple[fx.Node, list[fx.Node], fx.Node]:
    """The input node, the nodes the result depends on in order, and the node of the result."""
    image = next(node for node in graph.nodes if node.op == "placeholder")
    end = next(node for node in graph.nodes if node.op == "output")
    result = end.args[0]
    if not isinstance(result, fx.Node):
        raise CannotCut("its forward gives more than one tensor")
    live, waiting = {image}, [result]
    while waiting:
        node = waiting.pop()
        if node not in live:
            live.add(node)
            waiting.extend(node.all_input_nodes)
    return image, [node for node in graph.nodes if node in live], result


def _constants(nodes: Sequence[fx.Node], image: fx.Node) -> set[fx.Node]:
    """Nodes that do not depend on the image: each side of a cut gets its own."""
    constant: set[fx.Node] = set()
    for node in nodes:
        if node is not image and all(n in constant for n in node.all_input_nodes):
            constant.add(node)
    return constant


def is_batch_norm(module: nn.Module) -> bool:
    """Whether a module keeps running statistics of batches."""
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def dry_run(module: nn.Module, value: Tensor) -> Any:
    """The module's output in evaluation mode, without gradients; its mode is as before."""
    was = module.training
    module.eval()
    try:
        with torch.inference_mode():
            return module(value)
    finally:
        module.train(was)
