"""Asymmetric student-teacher networks (WACV 2023)."""
