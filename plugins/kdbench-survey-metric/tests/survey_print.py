"""What the survey prints, typed a second time, and our own scores of it."""

from __future__ import annotations

# Table 2: reduction in accuracy, gain over the same net without a teacher, reduction in size; None for a dash. The last
# number is our own score, None where nothing follows.
TABLE2: dict[str, tuple[float | None, float | None, float | None, float | None]] = {
    "offline/Lopes-2017": (4.8, -5.699, 50, 0.274),
    "offline/Yim-2017": (-0.3043, None, None, None),
    "offline/Gao-2018": (2.889, 7.813, 96.20, 0.033),
    "offline/Wang-2019": (None, None, 78.99, None),
    "offline/He-2019": (4.868, None, 92.13, 0.064),
    "offline/Heo-2019": (-6.191, 14.123, 70.66, 0.116),
    "offline/Li-2019": (7.431, 16.89, 95.86, 0.058),
    "offline/Liu-2019": (0.831, 2.637, 73.59, 0.136),
    "online/Zhou-2018": (1.006, 1.37, 66, 0.175),
    "online/Zhang-2019": (13.72, None, None, None),
    "online/Kim-2019": (5.869, None, None, None),
    "online/Walawalkar-2020": (1.019, 1.095, 96.36, 0.023),
    "online/Chung-2020": (1.557, 6.768, 53.333, 0.241),
}
TABLE1: dict[str, tuple[float, float | None, float | None]] = {  # reductions in accuracy and size, our score
    "Furlanello-2018": (-2.369, None, None),
    "Kimura-2019": (-10.526, None, None),
    "Min-2019": (0.607, 99.44, 0.0058),
    "Polino-2018": (0.18, None, None),
}
CROSSOVERS = {"62.84-35.36": 0.0954, "35.36-15.25": 0.2242, "15.25-3.74": 0.7052}
