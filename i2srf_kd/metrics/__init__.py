"""Objective measures of enhanced speech, bootstrap intervals and model complexity."""
