"""Who runs a function: NumPy, CuPy or Triton. Each module has the same face.

Everything that reaches a backend has been checked; outputs are given and only written; temporaries
come from `empty(shape, dtype_name)`; nothing is read back to the host.

    why_not()                                                     None, or why it cannot run here
    elementwise(formula, arrays, params, out, empty)              arrays of out's shape
    fused(fusion, x, params, gate, residual, out, empty)          scale, bias and slope, or None
    fused_backward(fusion, dy, x, params, gate, dx, dgate, dparams, empty)
    reduce(formula, arrays, out, empty)                           sums over the axes where out is 1
    rows(formula, arrays, out, empty)                             (outer, n, inner), the row in n
    cross_entropy(logits, target, weight, loss, lse, *, …)        logits (outer, classes, inner)
    cross_entropy_backward(scale, logits, target, weight, lse, dlogits, *, …)
    cross_entropy_with_grad(scale, logits, target, weight, loss, dlogits, *, …)
    target_weight(target, weight, out, *, classes, ignore_index)

A backend whose preparations cost more than its launch may offer them apart. Each gives what starts
the kernel for arrays that agree with these in `libraries.FACTS`, or None; new memory counts as
aligned like `out`.

    prepare(formula, arrays, params, out)                         → start((*arrays, *params), out)
    prepare_fused(fusion, operands, slope, out)                   → start(operands, out, dropout)
"""

BACKENDS = ("numpy", "cupy", "triton")
SHAPES = "shapes"  # computes nothing: for programs that are traced
