"""Engines that run models, and calibration. The only place, with training, that imports paddle."""
