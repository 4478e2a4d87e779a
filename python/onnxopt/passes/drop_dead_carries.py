"""Carried values that no one needs, that never change, or that are copies of another."""

from __future__ import annotations

from onnxopt import ir
from onnxopt.loops import Carry, Loop, loops_of
from onnxopt.passes.base import Context, Pass, PassResult, register_pass
from onnxopt.rewrite.editor import SIDE_EFFECT_FREE_DOMAINS
from onnxopt.rewrite.patch import Builder


@register_pass
class DropDeadCarries(Pass):
    """Drop what loops carry or stack for nothing.

    A carried value that no iteration changes is the value from outside; two that begin and go on alike are one; one that leads to no
    output that is used, and a scan output or a sequence without uses, goes.
    """

    name = "drop_dead_carries"
    phase = "unroll"

    def rule_names(self) -> list[str]:
        return ["constant_carry", "equal_carries", "dead_carry"]

    def run(self, model: ir.Model, ctx: Context) -> PassResult:
        patches = 0
        for loop in loops_of(ctx):
            patches += self._drop(loop, "constant_carry", _constant_carries(loop), ctx)
            patches += self._drop(loop, "equal_carries", _equal_carries(loop), ctx)
            patches += self._drop_dead(loop, ctx)
        return PassResult(patches > 0, patches)

    def _drop(self, loop: Loop, rule: str, pairs: list[tuple[Carry, Carry | None]], ctx: Context) -> bool:
        """Let the value from outside (None), or another carried value, stand for carried ones."""
        if not pairs or not ctx.budget.take():
            return False
        for carry, other in pairs:
            inside = carry.initial if other is None else other.inside
            for user, index in carry.inside.uses():
                user.replace_input_with(index, inside)
        gone = {id(carry) for carry, _ in pairs}
        loop.carries = [carry for carry in loop.carries if id(carry) not in gone]

        def finals(_: Builder) -> dict[ir.Value, ir.Value]:
            known = [(carry.final, carry.initial if other is None else other.final) for carry, other in pairs]
            return {old: new for old, new in known if old is not None and new is not None}

        loop.rebuild(rule, ctx, after=finals)
        return True

    def _drop_dead(self, loop: Loop, ctx: Context) -> bool:
        live = _live(loop)
        carries = [carry for carry in loop.carries if carry.inside in live]
        outputs = [one for one in loop.scan_outputs if one.stacked is not None and _is_used(one.stacked)]
        inputs = [one for one in loop.scan_inputs if one.element in live] or loop.scan_inputs[:1]
        same = len(carries) == len(loop.carries) and len(outputs) == len(loop.scan_outputs)
        if same and len(inputs) == len(loop.scan_inputs):
            return False
        if not (carries or outputs) or not ctx.budget.take():
            return False
        loop.carries, loop.scan_outputs, loop.scan_inputs = carries, outputs, inputs
        loop.rebuild("dead_carry", ctx)
        dead = [node for node in loop.body if not any(value in live for value in node.outputs)]
        ctx.editor.remove_unused(dead)
        return True


def _constant_carries(loop: Loop) -> list[tuple[Carry, Carry | None]]:
    results = {one.element for one in loop.scan_outputs} | {loop.condition_after}
    return [
        (carry, None)
        for carry in loop.carries
        if ir.source_of(carry.after) is carry.inside
        and carry.inside not in results
        and not any(other.after is carry.inside for other in loop.carries if other is not carry)
    ]


def _equal_carries(loop: Loop) -> list[tuple[Carry, Carry | None]]:
    first: dict[tuple[ir.Value, ir.Value], Carry] = {}
    pairs: list[tuple[Carry, Carry | None]] = []
    for carry in loop.carries:
        other = first.setdefault((carry.initial, ir.source_of(carry.after)), carry)
        if other is not carry:
            pairs.append((carry, other))
    return pairs


def _is_used(value: ir.Value) -> bool:
    return ir.use_count(value) > 0 or value.is_graph_output()


def _live(loop: Loop) -> set[ir.Value]:
    """The values of the body on which a used output or the condition depends."""
    after = {carry.inside: carry.after for carry in loop.carries}
    stack = [carry.after for carry in loop.carries if carry.final is not None and _is_used(carry.final)]
    stack += [one.element for one in loop.scan_outputs if one.stacked is not None and _is_used(one.stacked)]
    if loop.condition_after is not None:
        stack.append(loop.condition_after)
    for node in loop.body:
        if node.domain not in SIDE_EFFECT_FREE_DOMAINS:
            stack.extend(node.outputs)
    # A carried value with a used result is needed inside when no iteration runs: its initial value is the result.
    live = {carry.inside for carry in loop.carries if carry.final is not None and _is_used(carry.final)}
    while stack:
        value = stack.pop()
        if value in live and value not in after:
            continue
        live.add(value)
        producer = value.producer()
        if producer is not None:
            stack.extend(one for one in ir.inputs_with_captures(producer) if one not in live)
        following = after.get(value)
        if following is not None and following not in live:
            stack.append(following)
    return live
