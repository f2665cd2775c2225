r"""Distillation losses, with every weight spelled out.

For student logits ``s``, teacher logits ``t``, labels ``y`` and temperature ``T`` (Hinton et al. 2015, section 2):

    L = (1 - alpha) * CE(s, y) + alpha * T^2 * KL(softmax(t / T) || softmax(s / T))

================================== ==================================================================================
function                           for
================================== ==================================================================================
:func:`distillation_loss`          the formula; temperature, alpha and a weight may be given per row
:func:`kl`, :func:`cross_entropy`  its terms alone, without ``T^2`` and alpha
:func:`soft_label_cross_entropy`   a target that is partly on the label; label smoothing
:func:`ensemble_distillation_loss` several teachers: the mean of their probabilities, or of their losses
:func:`topk_distillation_loss`     a teacher known in K classes a row
:func:`linear_distillation_loss`   hidden states and output layers, where the logits are too many to hold
:func:`teacher_log_sum_exp`        what to keep of a teacher beside some or all of its logits
================================== ==================================================================================

Temperature and alpha have no default: silent defaults are how two runs of "the same" recipe come to differ.
Gradients flow to the student only. They exist to first order: differentiating them again is an error.

Reductions over N rows of C classes. V is the number of rows whose label is not ``ignore_index``, M the number of rows
with a KL: N, or V with ``kl_rows="valid"``. A ``row_weight`` multiplies the losses of its row and no divisor:

============= ============================ ==========================================================================
reduction     cross-entropy                KL
============= ============================ ==========================================================================
``batchmean`` sum / V                      sum / M: the divergence of the formula
``mean``      sum / V                      sum / (M C): what ``torch.nn.KLDivLoss`` does by default. C times too small;
                                           much released code trains with it, so it is needed to reproduce that code
``sum``       sum                          sum
``none``      ``[N]`` row losses           ``[N]`` row losses, added to the other term's
============= ============================ ==========================================================================

Edge cases, equal in every implementation: a class that the teacher excludes (logit -inf) contributes 0; one that only
the student excludes makes the loss infinite; a row with NaN or +inf, or one that is all -inf, is NaN; no rows, or no
rows that are not ignored, make a term 0 (never 0 / 0); a term, or a row of it, whose weight is 0 is not computed.
Nothing waits for a GPU; so there a label, an index or a value per row that is out of range cannot be reported, and
makes its row NaN.

Which implementation computes a loss, :func:`kdbench.ops.implementation` says. Half precision is computed in float32 in
all of them: the loss is float32, the gradient has the logits' dtype. The compiled kernels hold float32 accuracy for
temperatures from 1e-3 to 1e3; plain torch loses digits of the KL term with T^2 above 1.
"""

from __future__ import annotations

from kdbench.losses._weights import KlRows, Reduction
from kdbench.losses.distillation import cross_entropy, distillation_loss, kl, teacher_log_sum_exp
from kdbench.losses.ensemble import Combine, ensemble_distillation_loss
from kdbench.losses.linear import linear_distillation_loss
from kdbench.losses.soft_labels import soft_label_cross_entropy
from kdbench.losses.topk import Tail, topk_distillation_loss

__all__ = [
    "Combine",
    "KlRows",
    "Reduction",
    "Tail",
    "cross_entropy",
    "distillation_loss",
    "ensemble_distillation_loss",
    "kl",
    "linear_distillation_loss",
    "soft_label_cross_entropy",
    "teacher_log_sum_exp",
    "topk_distillation_loss",
]
