"""Weights in and out: conversion, export, encoding of a data set to latents."""
