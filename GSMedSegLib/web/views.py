"""The four views of the page: three slices and the surface, as Slicer draws them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import slicer
import vtk
from numpy.typing import ArrayLike
from trame.widgets import html
from trame.widgets import vuetify3 as v
from trame_slicer.rca_view import RemoteSliceViewFactory, RemoteThreeDViewFactory
from trame_slicer.views import ViewLayoutDefinition, ViewType
from trame_slicer.views.abstract_view import ViewProps

from GSMedSegLib.web.labels import labelled
from GSMedSegLib.web.sizes import SharedSize

SLICES = {"Axial": "#E8695F", "Coronal": "#69B578", "Sagittal": "#E3C567"}
"""Slice views, and the colours that Slicer's users know them by."""

SURFACE = "Surface"
"""The view in three dimensions."""

NAMES = (*SLICES, SURFACE)

FRAMES_PER_S = 20.0
JPEG_QUALITY = 75
BACKGROUND = ("#15181c", "#22272e")
SAMPLES = 2
"""Of a pixel: more look no better here and take their time without a GPU."""


class Views:
    """The views, and where in the image they are.

    Args:
        app: Slicer's core.
        server: of the page.
        maximise: called with a view's name, when its button for that is pressed.
    """

    def __init__(self, app: Any, server: Any, maximise: Callable[[str], None]) -> None:
        self._scene, self._state = app.scene, server.state
        self._maximise = maximise
        self._quiet = False
        self._fits: dict[str, float] = {}
        """Millimetres per pixel with which slice views of their size show the whole image."""
        with _no_warnings():
            self._views = self._create(app, server)
            for name in SLICES:
                view = self._views[name]
                view.interactor().AddObserver(
                    vtk.vtkCommand.WindowResizeEvent, lambda *_, name=name: self._resized(name), 1.0
                )
        for name in SLICES:
            self._views[name].modified.connect(lambda _view, name=name: self._moved(name))
            self._state.change(f"{name}_offset")(self._mover(name))

    def _create(self, app: Any, server: Any) -> dict[str, Any]:
        more = {
            "rca_encoder": "jpeg",
            "target_fps": FRAMES_PER_S,
            "blur_fps": FRAMES_PER_S,
            "interactive_quality": JPEG_QUALITY,
        }
        slices = RemoteSliceViewFactory(server, populate_view_ui_f=self._slice_ui, **more)
        surface = RemoteThreeDViewFactory(server, populate_view_ui_f=self._surface_ui, **more)
        for factory in (slices, surface):
            app.view_manager.register_factory(factory)
        for name, color in SLICES.items():
            self._state[f"{name}_slice"] = {"value": 0.0, "min": 0.0, "max": 1.0, "step": 1.0}
            self._state[f"{name}_offset"] = 0.0
            properties = ViewProps(orientation=name, label=name, color=color)
            app.view_manager.create_view(ViewLayoutDefinition(name, ViewType.SLICE_VIEW, properties))
        app.view_manager.create_view(
            ViewLayoutDefinition.threed_view(name=SURFACE, label=SURFACE, background_color=BACKGROUND)
        )
        app.view_manager.set_current_view_ids(list(NAMES))
        views = {name: app.view_manager.get_view(name) for name in NAMES}
        for name, view in views.items():
            view.render_window().SetMultiSamples(SAMPLES)
            adapter = (slices if name in SLICES else surface).get_factory_view(name).view_adapter
            SharedSize(adapter, _scaler(view.get_view_node()))
        return views

    def show(self, volume: Any) -> None:
        """Show a volume node in all slices, whole and in the middle; None for nothing."""
        self._fits.clear()
        for name in SLICES:
            view = self._views[name]
            view.set_background_volume_id(None if volume is None else volume.GetID())
            if volume is not None:
                view.reset_view()
                self._fits[name] = _mm_per_pixel(view.get_view_node())
                self._moved(name)
        if volume is not None:
            bounds = [0.0] * 6
            volume.GetRASBounds(bounds)
            self._look_at(bounds)
        self.render()

    def jump_to(self, ras: ArrayLike) -> None:
        """Show the slices through a point of the world (mm)."""
        r, a, s = np.asarray(ras, float).tolist()
        for name in SLICES:
            self._views[name].get_view_node().JumpSliceByOffsetting(r, a, s)

    def render(self) -> None:
        """Draw all views again."""
        for view in self._views.values():
            view.schedule_render()

    def reset(self, name: str) -> None:
        """Show the whole image in a view again."""
        if name in SLICES:
            self._fit(name)
        else:
            self._views[name].fit_view_to_content()
        self._views[name].schedule_render()

    def surfaces_changed(self) -> None:
        """Draw the surface view again; what lies before or behind the surfaces so far is not cut off."""
        view = self._views[SURFACE]
        view.renderer().ResetCameraClippingRange()
        view.schedule_render()

    def node(self, name: str) -> Any:
        """The view node of a view."""
        return self._views[name].get_view_node()

    def _look_at(self, bounds_ras: list[float]) -> None:
        """The camera of the surface view from the front, so that a box of the world fills it."""
        view = self._views[SURFACE]
        camera = view.get_camera_node().GetCamera()
        low, high = np.array(bounds_ras[0::2]), np.array(bounds_ras[1::2])
        center, size = (low + high) / 2, float(np.linalg.norm(high - low))
        camera.SetFocalPoint(*center)
        camera.SetViewUp(0, 0, 1)
        camera.SetPosition(*(center + np.array([0.35, 1.0, 0.25]) * size * 1.3))
        view.get_camera_node().ResetClippingRange()

    def _fit(self, name: str) -> None:
        view = self._views[name]
        if view.get_background_volume_id() is None:
            return
        offset = view.get_slice_value()
        view.fit_view_to_content()
        view.set_slice_value(offset)
        self._fits[name] = _mm_per_pixel(view.get_view_node())

    def _resized(self, name: str) -> None:
        """A view has another size: the image fits it again, or is so much larger as the user had made it."""
        if name not in self._fits:
            return
        node = self._views[name].get_view_node()
        zoom = _mm_per_pixel(node) / self._fits[name]
        middle = node.GetXYZOrigin()
        self._fit(name)
        width, height, depth = node.GetFieldOfView()
        node.SetFieldOfView(zoom * width, zoom * height, depth)
        node.SetXYZOrigin(*middle)

    def _moved(self, name: str) -> None:
        """The slice of a view is another one: the slider follows."""
        view = self._views[name]
        low, high, step = self._slices_mm(name)
        self._quiet = True
        self._state[f"{name}_slice"] = {"min": low, "max": high, "step": step}
        self._state[f"{name}_offset"] = view.get_slice_value()
        self._quiet = False

    def _slices_mm(self, name: str) -> tuple[float, float, float]:
        """First and last slice of a view, and from one to the next.

        Those that Slicer gives lead out of an image with one slice or two.
        """
        view = self._views[name]
        step = view.get_slice_step()
        volume = self._scene.GetNodeByID(view.get_background_volume_id() or "")
        if volume is None:
            return 0.0, 0.0, step
        to_view = vtk.vtkMatrix4x4()
        to_view.DeepCopy(view.get_view_node().GetSliceToRAS())
        for row in range(3):
            to_view.SetElement(row, 3, 0.0)
        to_view.Invert()
        bounds = [0.0] * 6
        volume.GetSliceBounds(bounds, to_view)
        low, high = bounds[4:]
        first = low + step / 2
        return first, first + (round((high - low) / step) - 1) * step, step

    def _mover(self, name: str) -> Callable[..., None]:
        def move(**state: Any) -> None:
            value = state[f"{name}_offset"]
            view = self._views[name]
            if view.get_background_volume_id() is not None and value != view.get_slice_value():
                view.set_slice_value(float(value))

        return move

    def _slice_ui(self, _server: Any, name: str, _view: Any) -> None:
        self._corner(name, SLICES[name])
        v.VSlider(
            v_model=(f"{name}_offset",),
            min=(f"{name}_slice.min",),
            max=(f"{name}_slice.max",),
            step=(f"{name}_slice.step",),
            v_show=f"image && {name}_slice.min < {name}_slice.max",
            classes="gs-slice",
            hide_details=True,
            density="compact",
            thumb_size=14,
            track_size=2,
            color=SLICES[name],
            name=f"{name} slice",
        )

    def _surface_ui(self, _server: Any, name: str, _view: Any) -> None:
        self._corner(name, "#8AB4F8")

    def _corner(self, name: str, color: str) -> None:
        html.Div(name if name in SLICES else "3D", classes="gs-label", style=f"color: {color}")
        with html.Div(classes="gs-corner"):
            with v.VBtn(
                icon=True,
                size="small",
                variant="text",
                click=(self._resetter(name), "[]"),
                **labelled(f"Fit {name}"),
                v_show="image",
            ):
                v.VIcon("mdi-fit-to-screen-outline", size="small")
                v.VTooltip("Show the whole image", activator="parent", location="bottom")
            with v.VBtn(
                icon=True,
                size="small",
                variant="text",
                click=(self._maximiser(name), "[]"),
                **labelled(f"Maximise {name}"),
            ):
                v.VIcon(
                    icon=(f"maximised === '{name}' ? 'mdi-arrow-collapse' : 'mdi-arrow-expand'",),
                    size="small",
                )
                v.VTooltip("Large view, and back", activator="parent", location="bottom")

    def _resetter(self, name: str) -> Callable[[], None]:
        return lambda: self.reset(name)

    def _maximiser(self, name: str) -> Callable[[], None]:
        return lambda: self._maximise(name)


def _mm_per_pixel(node: Any) -> float:
    """Of a slice view's node; pixels are square."""
    return float(node.GetFieldOfView()[0] / max(1, node.GetDimensions()[0]))


def _scaler(node: Any) -> Callable[[float], None]:
    """Has clicks and boxes in a view be as large on a sharp screen as on others."""
    usual = node.GetScreenScaleFactor()
    return lambda ratio: node.SetScreenScaleFactor(usual * ratio)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """VTK warns of an event of its own interactors, which trame-slicer sends by itself."""
    before = vtk.vtkObject.GetGlobalWarningDisplay()
    vtk.vtkObject.GlobalWarningDisplayOff()
    try:
        yield
    finally:
        vtk.vtkObject.SetGlobalWarningDisplay(before)


def interaction_node(scene: Any) -> Any:
    """The scene's node that says what the mouse does."""
    node = scene.GetFirstNodeByClass("vtkMRMLInteractionNode")
    assert isinstance(node, slicer.vtkMRMLInteractionNode)
    return node
