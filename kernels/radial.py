"""Radial kernels inside Triton code: k, phi = 2 dk/dq and 2 q dphi/dq as functions of q = |x - y|^2.

A kernel is a weighted list: `KINDS`, a constexpr tuple of the names below, and `parameters`, a tuple of run-time
floats, four a term: weight and shape (exponent or bandwidth), each as a float32 and its float32 remainder, since
a Python float reaches a Triton kernel in single precision. Changing a bandwidth recompiles nothing.

    riesz, riesz_1/2, riesz_1, riesz_3/2        -q^(r/2)
    gaussian                                    exp(-q / (2 sigma^2))
    laplacian                                   exp(-sqrt(q) / sigma)
    inverse_multiquadric                        (1 + q / sigma^2)^(-1/2)

A term's k is `factor_k` times a profile and its phi `factor_phi` times another; a single term's factors are left
to the end of the sum (`outer_factors`), out of the loop over pairs. Callers start q at `guard`, not at zero: no
profile is then infinite, and a coincident pair's force is a finite number times x - y = 0. Forces between points at a
distance r are smaller for it, by a part guard / r^2: 1e-8 at 1e-15 in float32.
"""

import struct

import triton
import triton.language as tl

# Names by which the package knows them; a special exponent of the first has code of its own.
NAMES = ("riesz", "gaussian", "laplacian", "inverse_multiquadric")
_LOG2_E = tl.constexpr(1.4426950408889634)


def parameters(terms):
    """The `parameters` tuple of (weight, shape) pairs."""
    flat = []
    for number in (number for term in terms for number in term):
        head = struct.unpack("f", struct.pack("f", number))[0]
        flat += [head, number - head]
    return tuple(flat)


@triton.jit
def guard(dtype: tl.constexpr):
    """What a squared distance starts from: its powers to -1 and above are finite in `dtype`, and it is no subnormal."""
    if dtype == tl.float64:
        return 1e-300
    else:
        return 1.2e-38


@triton.jit
def _number(head, rest, dtype: tl.constexpr):
    return tl.cast(head, dtype) + tl.cast(rest, dtype)


@triton.jit
def _coefficients(KIND: tl.constexpr, weight, shape):
    """(factor_k, factor_phi, c): c is what the profiles need of the shape."""
    if KIND == "gaussian":
        return weight, -weight / (shape * shape), -1 / (shape * shape) * (0.5 * _LOG2_E)
    elif KIND == "laplacian":
        return weight, -weight / shape, -1 / shape * _LOG2_E
    elif KIND == "inverse_multiquadric":
        return weight, -weight / (shape * shape), 1 / (shape * shape)
    else:
        return -weight, -weight * shape, 0.5 * shape - 1


@triton.jit
def unpack(KINDS: tl.constexpr, parameters, dtype: tl.constexpr):
    """Coefficients of all terms, three a term; computed once, before the loop over pairs."""
    found = ()
    for i in tl.static_range(len(KINDS)):
        weight = _number(parameters[4 * i], parameters[4 * i + 1], dtype)
        shape = _number(parameters[4 * i + 2], parameters[4 * i + 3], dtype)
        found += _coefficients(tl.constexpr(KINDS[i]), weight, shape)
    return found


@triton.jit
def outer_factors(KINDS: tl.constexpr, coefficients):
    """What the finished sums of k and of phi are to be multiplied by."""
    if len(KINDS) == 1:
        return coefficients[0], coefficients[1]
    else:
        return 1.0, 1.0


@triton.jit
def _power(KIND: tl.constexpr, q, c):
    """q^c for a Riesz kernel, c = r/2 - 1."""
    if KIND == "riesz_1":
        return tl.rsqrt(q)
    elif KIND == "riesz_1/2":
        s = tl.rsqrt(q)
        return s * tl.rsqrt(q * s)
    elif KIND == "riesz_3/2":
        return tl.rsqrt(tl.sqrt(q))
    else:
        return tl.exp2(c * tl.log2(q))


@triton.jit
def _profiles(KIND: tl.constexpr, c, q, v):
    """v k / factor_k and v phi / factor_phi of one term."""
    if KIND == "gaussian":
        e = v * tl.exp2(c * q)
        return e, e
    elif KIND == "laplacian":
        s = tl.rsqrt(q)
        e = v * tl.exp2(c * (q * s))
        return e, e * s
    elif KIND == "inverse_multiquadric":
        s = tl.rsqrt(1 + c * q)
        e = v * s
        return e, e * (s * s)
    else:
        w = v * _power(KIND, q, c)
        return w * q, w


@triton.jit
def charged(KINDS: tl.constexpr, coefficients, q, v):
    """v k(q) and v phi(q), but for the outer factors."""
    k, phi = _profiles(tl.constexpr(KINDS[0]), coefficients[2], q, v)
    if len(KINDS) > 1:
        k *= coefficients[0]
        phi *= coefficients[1]
        for i in tl.static_range(1, len(KINDS)):
            term_k, term_phi = _profiles(tl.constexpr(KINDS[i]), coefficients[3 * i + 2], q, v)
            k += coefficients[3 * i] * term_k
            phi += coefficients[3 * i + 1] * term_phi
    return k, phi


@triton.jit
def _slopes(KIND: tl.constexpr, c, q, v):
    """v phi / factor_phi and v 2 q dphi/dq / factor_phi of one term; zero where a cusp's points coincide."""
    if KIND == "gaussian":
        e = v * tl.exp2(c * q)
        return e, e * (q * (c * (2 / _LOG2_E)))
    elif KIND == "laplacian":
        s = tl.rsqrt(q)
        e = tl.where(q > guard(q.dtype), v * tl.exp2(c * (q * s)), 0.0)
        return e * s, e * (c * (1 / _LOG2_E) - s)
    elif KIND == "inverse_multiquadric":
        s = tl.rsqrt(1 + c * q)
        e = v * (s * s * s)
        return e, e * (3 * (s * s) - 3)
    else:
        w = tl.where(q > guard(q.dtype), v * _power(KIND, q, c), 0.0)
        return w, w * (2 * c)


@triton.jit
def charged_slopes(KINDS: tl.constexpr, coefficients, q, along, v):
    """v phi(q), v 2 q phi'(q) <d/|d|, p> and 1/|d|, given along = <d, p>, but for the outer factor of phi.

    The second belongs to d/|d|: phi' alone overflows near a cusp, and so may its product with <d, p>.
    """
    phi, curvature = _slopes(tl.constexpr(KINDS[0]), coefficients[2], q, v)
    if len(KINDS) > 1:
        phi *= coefficients[1]
        curvature *= coefficients[1]
        for i in tl.static_range(1, len(KINDS)):
            term_phi, term_curvature = _slopes(tl.constexpr(KINDS[i]), coefficients[3 * i + 2], q, v)
            phi += coefficients[3 * i + 1] * term_phi
            curvature += coefficients[3 * i + 1] * term_curvature
    inverse = tl.rsqrt(q)
    return phi, curvature * (along * inverse), inverse
