"""Each pass on a few lines of tile IR: what it does, and what it must leave alone."""

from codegen.passes.bounds import drop_proven_checks
from codegen.passes.cse import share_common
from codegen.passes.dce import drop_dead
from codegen.passes.fold import fold
from codegen.passes.licm import hoist_invariant
from codegen.passes.neutral import neutralise
from codegen.passes.split import split_ragged
from codegen.rewrite import reinfer
from codegen.text import parse_function, print_function
from codegen.verify import verify

HEAD = """\
kernel k(
    x: in f32[`N` `64` as N D],
    y: {role} f32[`N` `64` as N D]
) {{
  dims N
  grid i = `(N + 31) // 32`
  range N: `0` .. none
  range i: `0` .. `(N + 31) // 32 - 1`
"""
PLACE = (
    "start = (`{row}`, `0`), tile = ((0,), (1,)), sides = ((32,), (64,)), limit = (none, none), "
    "checks = ((true, true), (true, true))"
)
RAGGED = "tile<32[N - i * 32] x 64[64], f32>"


def load(name, param="x", row="i * 32", bound="N - i * 32"):
    place = PLACE.format(row=row)
    return f'%{name} = load() {{param = "{param}", {place}}} : tile<32[{bound}] x 64, f32>'


def store(name):
    return f'store(%{name}) {{param = "y", {PLACE.format(row="i * 32")}}}'


def after(run, *lines, role="out"):
    fn = parse_function(HEAD.format(role=role) + "\n".join(lines) + "\nyield()\n}")
    reinfer(fn)
    run(fn)
    verify(fn)
    return fn, [op.kind for op in fn.body.ops], print_function(fn)


def test_fold_literals_and_identities():
    _, kinds, text = after(
        fold,
        load("a"),
        "%one = const() {value = 1.0, dtype = !f32} : f32",
        "%two = const() {value = 2.0, dtype = !f32} : f32",
        "%three = add(%one, %two) : f32",
        "%b = mul(%a, %one) : tile<32[N - i * 32] x 64, f32>",
        "%c = mul(%b, %three) : tile<32[N - i * 32] x 64, f32>",
        store("c"),
    )
    assert kinds.count("mul") == 1
    assert "value = 3.0" in text
    assert "mul(%a, %three)" in text


def test_fold_leaves_what_is_not_an_identity():
    """x + 0 turns -0 into 0, and x * 0 is not 0 for NaN and infinities."""
    for op, literal in (("add", "0.0"), ("mul", "0.0"), ("sub", "1.0"), ("div", "2.0")):
        _, kinds, _ = after(
            fold,
            load("a"),
            f"%z = const() {{value = {literal}, dtype = !f32}} : f32",
            f"%b = {op}(%a, %z) : tile<32[N - i * 32] x 64, f32>",
            store("b"),
        )
        assert op in kinds


def test_cse_shares_loads_of_inputs_only():
    body = (
        load("a"),
        load("b"),
        "%c = add(%a, %b) : tile<32[N - i * 32] x 64, f32>",
        store("c"),
    )
    assert after(share_common, *body)[1].count("load") == 1
    again = (
        load("a", "y"),
        store("a"),
        load("b", "y"),
        "%c = add(%a, %b) : tile<32[N - i * 32] x 64, f32>",
        store("c"),
    )
    assert after(share_common, *again, role="inout")[1].count("load") == 2


def test_cse_tells_true_from_one():
    _, kinds, _ = after(
        share_common,
        "%a = const() {value = 1, dtype = !i32} : i32",
        "%b = const() {value = 1.0, dtype = !f32} : f32",
        load("c"),
        "%d = mul(%c, %b) : tile<32[N - i * 32] x 64, f32>",
        "%e = mul(%d, %a) : tile<32[N - i * 32] x 64, f32>",
        store("e"),
    )
    assert kinds.count("const") == 2


LOOP = """\
%u.9, %t.9 = for(%u, %t) {{index = `j`, start = `0`, stop = `(N + 31) // 32`}} : {z}, {z} {{
  ^(%u.1: {z}, %t.1: {z})
  {load}
  %s = exp(%w) : {z}
  %u.2 = add(%u.1, %s) : {z}
  %f = fill_dead(%v) {{value = 0.0, alive = true, axes = (0, 1)}} : {z}
  %t.2 = add(%t.1, %f) : {z}
  yield(%u.2, %t.2)
}}
""".format(z="tile<32 x 64, f32>", load=load("v", row="j * 32", bound="N - j * 32"))
ZEROS = "full() {value = 0.0, dtype = !f32, axes = (axis<32>, axis<64>)} : tile<32 x 64, f32>"


def loop(run):
    return after(
        run, f"%u = {ZEROS}", f"%t = {ZEROS}", f"%w = {ZEROS}", LOOP, store("t.9")
    )  # fmt: skip


def test_dce_drops_carries_that_nobody_reads():
    _, kinds, text = loop(drop_dead)
    assert "exp" not in text
    assert "%u" not in text
    assert kinds.count("for") == 1


def test_licm_hoists_what_the_loop_does_not_change():
    fn, kinds, _ = loop(hoist_invariant)
    assert "exp" in kinds
    (inner,) = [op for op in fn.body.ops if op.kind == "for"]
    assert "exp" not in [op.kind for op in inner.regions[0].ops]
    assert "load" in [op.kind for op in inner.regions[0].ops]


def test_bounds_drops_what_is_proved():
    fn, _, _ = after(drop_proven_checks, load("a"), store("a"))
    (a,) = [op for op in fn.body.ops if op.kind == "load"]
    assert a.attrs["checks"] == ((False, True), (False, False))
    assert a.result.type.axes[1].full
    assert not a.result.type.axes[0].full


def test_split_makes_whole_tiles_and_the_rest():
    fn, kinds, _ = loop(lambda f: (split_ragged(f), drop_proven_checks(f)))
    assert kinds.count("for") == 2
    whole, rest = [op for op in fn.body.ops if op.kind == "for"]
    assert str(whole.attrs["stop"]) == str(rest.attrs["start"]) == "FloorDiv(N, 32)"
    first, second = (next(o for o in op.regions[0].ops if o.kind == "load") for op in (whole, rest))
    assert first.result.type.full
    assert not second.result.type.full


def test_neutral_puts_the_fill_where_it_is_free():
    def reduced(op):
        return (
            load("a"),
            f'%r = reduce(%a) {{op = "{op}", axis = 0}} : tile<64, f32, row>',
            f'store(%r) {{param = "y", {PLACE.format(row="0")}}}'.replace(
                "tile = ((0,), (1,)), sides = ((32,), (64,)), limit = (none, none)",
                "tile = ((1,),), sides = ((64,),), limit = (none,)",
            ),
        )

    fn, kinds, _ = after(lambda f: (drop_proven_checks(f), neutralise(f)), *reduced("max"))
    assert "fill_dead" not in kinds
    assert fn.body.ops[0].attrs["other"] == float("-inf")
    # Elements before the tensor's start read as zero: a load that may meet them fills nothing.
    assert "fill_dead" in after(neutralise, *reduced("max"))[1]
    # Nothing is assumed of dead elements when they are to be poisoned.
    _, kinds, _ = after(lambda f: neutralise(f, trust=False), *reduced("max"))
    assert "fill_dead" in kinds
    # exp(0) is not 0: what the load put there does not survive it.
    body = reduced("sum")
    through = (
        body[0],
        "%e = exp(%a) : tile<32[N - i * 32] x 64, f32>",
        body[1].replace("%a", "%e"),
        body[2],
    )
    _, kinds, _ = after(neutralise, *through)
    assert "fill_dead" in kinds


def test_fold_moves_signs_to_who_reads_them():
    z = "tile<32[N - i * 32] x 64, f32>"
    sides = "tile<32[N - i * 32] x 32[N - i * 32], f32>"
    product = f'{{ta = false, tb = true, precision = "ieee"}} : {sides}'
    _, kinds, text = after(
        fold,
        load("a"),
        f"%n = neg(%a) : {z}",
        f"%s = neg(%n) : {z}",
        f"%b = sub(%s, %n) : {z}",
        f"%m = mul(%b, %n) : {z}",
        f"%c = sub(%b, %m) : {z}",
        f"%d = add(%m, %c) : {z}",
        f"%e = add(%d, %n) : {z}",
        f"%p = mma(%n, %n) {product}",
        store("e"),
    )
    assert kinds.count("neg") == 1 and "%s" not in text  # drop_dead takes %n
    said = [line.split(" :")[0].strip() for line in text.splitlines()]
    at = {line.split(" = ")[0]: line.split(" = ")[1] for line in said if " = " in line}
    assert (at["%b"], at["%e"]) == ("add(%a, %a)", "sub(%d, %a)")
    products = [n for n, what in at.items() if what == "mul(%b, %a)"]
    assert at["%c"] in [f"add(%b, {n})" for n in products]
    assert at["%d"] in [f"sub(%c, {n})" for n in products]
    assert at["%p"].startswith("mma(%a, %a)")
    # A single sign of a product stays, and who reads a value that is not negated.
    _, kinds, text = after(
        fold,
        load("a"),
        f"%n = neg(%a) : {z}",
        f"%p = mma(%n, %a) {product}",
        f"%d = sub(%n, %a) : {z}",
        store("d"),
    )
    assert "mma(%n, %a)" in text and "sub(%n, %a)" in text
