"""The harness itself: where clicks land, what files hold, which names are refused."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest

pytest.importorskip("slicer", reason="no Slicer core: pip install 'gsmedseg[web]'")
pytest.importorskip("PySide6.QtUiTools", reason="no Qt: pip install PySide6-Essentials", exc_type=ImportError)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")

import slicer
from PySide6 import QtCore, QtWidgets
from vtkmodules.vtkFiltersSources import vtkSphereSource

from Testing.slicer.conftest import MODULE, ROOT
from Testing.slicer.harness.application import SlicerApplication
from Testing.slicer.harness.desktop import SlicerDesktop
from Testing.slicer.harness.parameter_node import WithinRange, parameterNodeWrapper
from Testing.slicer.harness.slice_view import DEFAULT_VIEWS, SliceView
from Testing.slicer.harness.ui_loader import CUSTOM_WIDGETS

CENTER_IJK = (25, 30, 10)
SPACING_MM = (1.0, 1.5, 4.0)


def oblique_matrix() -> np.ndarray:
    """(4, 4) voxel (i, j, k) to world: turned about two axes, voxels of 1 × 1.5 × 4 mm."""
    c, s = np.cos(0.3), np.sin(0.3)
    about_s = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    c, s = np.cos(0.2), np.sin(0.2)
    about_r = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    matrix = np.eye(4)
    matrix[:3, :3] = about_s @ about_r @ np.diag(SPACING_MM)
    matrix[:3, 3] = (-20, 10, 30)
    return matrix


def ball() -> np.ndarray:
    """(20, 60, 50) bool: within 14 mm, roughly, of the centre."""
    k, j, i = np.indices((20, 60, 50))
    return (i - 25) ** 2 + (j - 30) ** 2 + (4 * (k - 10)) ** 2 < 200


def add_volume() -> Any:
    """The ball at 120 in a wavy background, on the oblique grid."""
    _, j, i = np.indices(ball().shape)
    array = np.where(ball(), 120, 20 * np.sin(i / 5) + 20 * np.cos(j / 7)).astype(np.float32)
    volume = slicer.util.addVolumeFromArray(array, oblique_matrix(), name="ct")
    volume.CreateDefaultDisplayNodes()
    return volume


def to_ijk(ras: Any) -> np.ndarray:
    """The truth by NumPy."""
    return np.linalg.solve(oblique_matrix(), [*ras, 1.0])[:3]


def to_ras(ijk: Any) -> np.ndarray:
    """The truth by NumPy."""
    return (oblique_matrix() @ [*ijk, 1.0])[:3]


@pytest.fixture
def application() -> Iterator[SlicerApplication]:
    with SlicerApplication() as opened:
        yield opened
    assert opened.vtk_errors == []


@pytest.fixture
def desktop() -> Iterator[SlicerDesktop]:
    with SlicerDesktop() as opened:
        yield opened
    assert opened.application.vtk_errors == []


class TestApplication:
    def test_nothing_is_left_behind(self):
        before = set(vars(slicer))
        with SlicerApplication():
            assert slicer.app.mrmlScene() is slicer.mrmlScene
            assert slicer.modules.volumes.logic().GetClassName() == "vtkSlicerVolumesLogic"
        assert set(vars(slicer)) == before

    def test_only_one_at_a_time(self, application: SlicerApplication):
        with pytest.raises(RuntimeError, match="One application at a time"):
            SlicerApplication().__enter__()
        assert slicer.app.mrmlScene() is application.scene

    def test_volumes_keep_their_voxels_and_their_grid(self, application: SlicerApplication, tmp_path: Path):
        volume = add_volume()
        assert slicer.util.saveNode(volume, str(tmp_path / "ct.nrrd"))
        read = slicer.util.loadVolume(tmp_path / "ct.nrrd")
        np.testing.assert_array_equal(slicer.util.arrayFromVolume(read), slicer.util.arrayFromVolume(volume))
        matrix = slicer.util.vtkMatrixFromArray(np.eye(4))
        read.GetIJKToRASMatrix(matrix)
        np.testing.assert_allclose(slicer.util.arrayFromVTKMatrix(matrix), oblique_matrix(), atol=1e-5)

    def test_bundles_bring_everything_back(self, application: SlicerApplication, tmp_path: Path):
        volume = add_volume()
        segmentation = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "masks")
        segmentation.CreateDefaultDisplayNodes()
        segmentation.SetReferenceImageGeometryParameterFromVolumeNode(volume)
        segment = segmentation.GetSegmentation().AddEmptySegment("ball", "Ball")
        slicer.util.updateSegmentBinaryLabelmapFromArray(
            ball().astype(np.uint8), segmentation, segment, volume
        )
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode", "points")
        points.AddControlPoint(1.0, -2.0, 3.5)
        assert slicer.util.saveScene(str(tmp_path / "all.mrb"))

        slicer.mrmlScene.Clear()
        assert not list(slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
        slicer.util.loadScene(str(tmp_path / "all.mrb"))
        again = slicer.util.getNode("masks")
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(again, "ball", slicer.util.getNode("ct"))
        np.testing.assert_array_equal(mask.astype(bool), ball())
        position = slicer.util.getNode("points").GetNthControlPointPositionWorld(0)
        np.testing.assert_array_equal(position, (1.0, -2.0, 3.5))

    def test_surfaces_and_transforms_are_read(self, application: SlicerApplication, tmp_path: Path):
        transform = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLLinearTransformNode", "shift")
        slicer.util.updateTransformMatrixFromArray(transform, np.array(oblique_matrix()))
        assert slicer.util.saveNode(transform, str(tmp_path / "shift.tfm"))
        read = slicer.util.loadTransform(tmp_path / "shift.tfm")
        np.testing.assert_allclose(slicer.util.arrayFromTransformMatrix(read), oblique_matrix(), atol=1e-9)

        source = vtkSphereSource()
        source.Update()
        model = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLModelNode", "sphere")
        model.SetAndObservePolyData(source.GetOutput())
        assert slicer.util.saveNode(model, str(tmp_path / "sphere.vtp"))
        again = slicer.util.arrayFromModelPoints(slicer.util.loadModel(tmp_path / "sphere.vtp"))
        np.testing.assert_allclose(again, slicer.util.arrayFromModelPoints(model), atol=1e-6)

    def test_errors_of_vtk_are_seen(self):
        with SlicerApplication() as application:
            storage = slicer.vtkMRMLVolumeArchetypeStorageNode()
            storage.SetFileName("nowhere.nrrd")
            assert not storage.ReadData(slicer.vtkMRMLScalarVolumeNode())
        assert application.vtk_errors

    def test_a_missing_file_is_refused(self, application: SlicerApplication, tmp_path: Path):
        with pytest.raises(RuntimeError, match="There is no file"):
            slicer.util.loadVolume(tmp_path / "none.nii.gz")

    @pytest.mark.parametrize(("name", "orientation", "color"), DEFAULT_VIEWS)
    def test_a_view_knows_where_its_pixels_are(
        self, application: SlicerApplication, name: str, orientation: str, color: tuple[int, int, int]
    ):
        """Without Qt: the brightest pixel of a volume with one bright voxel shows that voxel's centre."""
        array = np.zeros((20, 60, 50), np.float32)
        array[CENTER_IJK[::-1]] = 100
        volume = slicer.util.addVolumeFromArray(array, oblique_matrix())
        volume.CreateDefaultDisplayNodes()
        view = SliceView(application, name, orientation, color)
        application.logic.GetSelectionNode().SetActiveVolumeID(volume.GetID())
        application.logic.PropagateVolumeSelection()
        view.fit()
        view.show_position(to_ras(CENTER_IJK))
        brightness = view.picture().sum(axis=2, dtype=int)
        rows, columns = np.nonzero(brightness > brightness.max() * 0.8)
        seen = view.ras_of((round(columns.mean()), round(rows.mean())))
        assert np.abs(to_ijk(seen) - CENTER_IJK).max() < 0.5
        view.close()


class TestDesktop:
    @pytest.mark.parametrize("name", ["Red", "Yellow", "Green"])
    @pytest.mark.parametrize("ijk", [(25, 30, 10), (12, 44, 6), (40, 8, 15)])
    def test_a_click_lands_on_its_voxel(self, desktop: SlicerDesktop, name: str, ijk: tuple[int, int, int]):
        """Half a voxel at most, whatever the grid."""
        volume = add_volume()
        desktop.show_volume(volume)
        points = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLMarkupsFiducialNode")
        points.CreateDefaultDisplayNodes()
        slicer.modules.markups.logic().SetActiveList(points)
        interaction = slicer.app.applicationLogic().GetInteractionNode()
        view = desktop.slice_view(name)
        view.click_ras(to_ras(ijk))
        assert points.GetNumberOfDefinedControlPoints() == 0, "no place mode, no point"
        interaction.SetPlaceModePersistence(1)
        interaction.SetCurrentInteractionMode(interaction.Place)
        view.click_ras(to_ras(ijk))
        assert points.GetNumberOfDefinedControlPoints() == 1
        at = to_ijk(points.GetNthControlPointPositionWorld(0))
        assert np.abs(at - ijk).max() < 0.5

    def test_parameters_and_widgets_follow_each_other(self, desktop: SlicerDesktop):
        panel = desktop.open_module(MODULE).panel
        parameters = panel._parameters
        assert panel.ui.smoothingSlider.value == 0.0
        panel.ui.smoothingSlider.value = 1.5
        assert parameters.smoothing_mm == 1.5
        parameters.auto = False
        assert not panel.ui.autoCheckBox.checked
        desktop.click(panel.ui.autoCheckBox)
        assert parameters.auto is True
        with pytest.raises(AttributeError, match="no parameter smoothing"):
            parameters.smoothing = 1.0
        with pytest.raises(ValueError, match="takes float"):
            parameters.smoothing_mm = "much"

    def test_parameters_remember_what_they_read(self, desktop: SlicerDesktop):
        """As Slicer's: what a node's references come to point at afterwards is not seen."""

        class Chosen:
            volume: slicer.vtkMRMLScalarVolumeNode

        wrap, node = parameterNodeWrapper(Chosen), slicer.vtkMRMLScriptedModuleNode()
        slicer.mrmlScene.AddNode(node)
        before = wrap(node)
        node.SetNodeReferenceID("volume", "vtkMRMLScalarVolumeNode1")
        volume = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode")
        assert volume.GetID() == "vtkMRMLScalarVolumeNode1"
        assert (before.volume, wrap(node).volume) == (None, volume)
        node.Modified()
        assert before.volume is volume

    def test_a_slider_takes_a_number_within_a_range_only(self, desktop: SlicerDesktop):
        """Slicer's wrapper refuses the other ones."""
        import ctk

        @parameterNodeWrapper
        class Numbers:
            free: float
            bounded: Annotated[float, WithinRange(0, 5)] = 1.0

        slider = ctk.ctkSliderWidget()
        numbers = Numbers(slicer.vtkMRMLScriptedModuleNode())
        numbers.connectParametersToGui({"bounded": slider})
        assert slider.value == 1.0
        with pytest.raises(RuntimeError, match="annotated with WithinRange"):
            numbers.connectParametersToGui({"free": slider})
        with pytest.raises(ValueError, match="from 0 to 5"):
            numbers.bounded = 6.0

    def test_what_is_disabled_cannot_be_pressed(self, desktop: SlicerDesktop):
        panel = desktop.open_module(MODULE).panel
        with pytest.raises(RuntimeError, match="undoButton is hidden or disabled"):
            desktop.click(panel.ui.undoButton)

    def test_an_error_left_over_fails_the_test(self):
        desktop = SlicerDesktop(three_d=False).__enter__()
        QtCore.QTimer.singleShot(0, lambda: 1 / 0)
        desktop.process_events()
        with pytest.raises(ZeroDivisionError):
            desktop.__exit__(None, None, None)

    def test_many_calls_that_return_nothing_do_no_harm(self):
        """In a process of its own, which would end with a fatal error."""
        program = (
            "from Testing.slicer.harness.desktop import SlicerDesktop\n"
            "with SlicerDesktop(three_d=False) as desktop:\n"
            "    for _ in range(400_000):\n"
            "        desktop.window.setWindowTitle('')\n"
        )
        ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr

    def test_all_is_as_before_afterwards(self):
        known = set(sys.modules)
        with SlicerDesktop(three_d=False) as desktop:
            desktop.open_module(MODULE)
            assert {"qt", "ctk", "GSMedSeg", "slicer.i18n"} <= set(sys.modules)
        left = {"qt", "ctk", "SampleData", "GSMedSeg"} | {
            f"slicer.{name}" for name in ("i18n", "ScriptedLoadableModule", "parameterNodeWrapper")
        }
        assert not left & (set(sys.modules) - known)
        assert str(MODULE.parent) not in sys.path
        label = QtWidgets.QLabel("text")
        assert label.text() == "text", "PySide6 is itself again"
        label.anything = 1


class TestPythonQt:
    """What Slicer's Python refuses is refused; what it allows works."""

    def test_properties_are_attributes(self, desktop: SlicerDesktop):
        import qt

        button = qt.QPushButton("go")
        button.enabled = False
        button.name = "goButton"
        assert (button.text, button.enabled, button.objectName) == ("go", False, "goButton")
        button.setText("gone")
        assert button.text == "gone"
        with pytest.raises(TypeError, match="not callable"):
            button.text()
        spin = qt.QSpinBox()
        spin.maximum, spin.value = 500, 300
        assert spin.value == 300

    def test_unknown_names_are_refused(self, desktop: SlicerDesktop):
        import ctk
        import qt

        button = qt.QPushButton("go")
        with pytest.raises(AttributeError, match="did you mean enabled"):
            button.enabeld = True
        with pytest.raises(AttributeError, match="caption"):
            _ = button.caption
        with pytest.raises(AttributeError, match="did you mean QPushButton"):
            _ = qt.QPushButtn
        with pytest.raises(AttributeError, match="Signal"):
            _ = qt.Signal
        with pytest.raises(AttributeError, match="ctkNothing"):
            _ = ctk.ctkNothing
        with pytest.raises(AttributeError, match="nothing"):
            _ = slicer.app.nothing
        with pytest.raises(AttributeError, match="read"):
            qt.QComboBox().count = 3

    def test_signals_are_connected_by_their_signature(self, desktop: SlicerDesktop):
        import qt

        button, told = qt.QPushButton("go"), []
        button.checkable = True

        def down(checked: bool) -> None:
            told.append(checked)

        button.connect("clicked(bool)", down)
        button.connect("clicked()", lambda: told.append("clicked"))
        button.connect("toggled(bool)", lambda: told.append("no argument wanted"))
        button.click()
        assert told == ["no argument wanted", True, "clicked"]
        assert button.disconnect("clicked(bool)", down)
        assert not button.disconnect("clicked(bool)", down)
        button.click()
        assert told[3:] == ["no argument wanted", "clicked"]
        with pytest.raises(ValueError, match=r"no signal 'clicked\(int\)'; it has clicked\(bool\)"):
            button.connect("clicked(int)", down)
        timer = qt.QTimer()
        timer.singleShot = True
        timer.connect("timeout()", lambda: told.append("timeout"))
        timer.start(1)
        desktop.wait_until(lambda: "timeout" in told, timeout_s=5)

    def test_subclasses_may_have_attributes_of_their_own(self, desktop: SlicerDesktop):
        import qt

        class Filter(qt.QObject):
            def __init__(self) -> None:
                super().__init__()
                self.seen = 0

            def eventFilter(self, _watched: Any, _event: Any) -> bool:
                self.seen += 1
                return False

        label, spy = qt.QLabel("x"), Filter()
        label.installEventFilter(spy)
        label.text = "longer"
        label.show()
        desktop.process_events()
        assert spy.seen > 0

    @pytest.mark.parametrize(
        ("line", "why"),
        [
            ('<widget class="qMRMLNothing" name="one"/>', "no widget class qMRMLNothing"),
            (
                '<widget class="QPushButton" name="a"><property name="txet"/></widget>',
                "no property txet .did you mean text",
            ),
            (
                '<widget class="qMRMLNodeComboBox" name="a"><property name="nodeType"/></widget>',
                "no property nodeType .did you mean nodeTypes",
            ),
        ],
    )
    def test_a_ui_file_with_a_slip_is_refused(
        self, desktop: SlicerDesktop, tmp_path: Path, line: str, why: str
    ):
        path = tmp_path / "slip.ui"
        path.write_text(
            '<ui version="4.0"><widget class="QWidget" name="root"><layout class="QVBoxLayout"><item>'
            f"{line}</item></layout></widget></ui>",
            encoding="utf-8",
        )
        with pytest.raises(ValueError, match=why):
            slicer.util.loadUI(str(path))


class TestWidgets:
    def test_the_node_box_follows_the_scene(self, desktop: SlicerDesktop):
        box = CUSTOM_WIDGETS["qMRMLNodeComboBox"]()
        box.nodeTypes = ["vtkMRMLSegmentationNode"]
        told: list[Any] = []
        box.connect("currentNodeChanged(vtkMRMLNode*)", told.append)
        box.setMRMLScene(slicer.mrmlScene)
        add_volume()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        assert (box.nodeCount(), box.currentNode()) == (1, None)
        box.setCurrentNode(node)
        assert (box.currentNodeID, told) == (node.GetID(), [node])
        slicer.mrmlScene.RemoveNode(node)
        assert (box.currentNode(), told) == (None, [node, None])
        box.delete()

    def test_the_segments_table_follows_the_segmentation(self, desktop: SlicerDesktop):
        table = CUSTOM_WIDGETS["qMRMLSegmentsTableView"]()
        node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode")
        node.CreateDefaultDisplayNodes()
        table.setSegmentationNode(node)
        first = node.GetSegmentation().AddEmptySegment("", "first")
        second = node.GetSegmentation().AddEmptySegment("", "second")
        told: list[Any] = []
        table.connect(
            "selectionChanged(QItemSelection,QItemSelection)", lambda: told.append(table.selectedSegmentIDs())
        )
        table.setSelectedSegmentIDs([second])
        assert table.selectedSegmentIDs() == (second,)
        assert told[-1] == (second,)
        node.GetSegmentation().RemoveSegment(second)
        assert table.selectedSegmentIDs() == ()
        assert table.segmentCount() == 1
        assert first in node.GetSegmentation().GetSegmentIDs()
        table.delete()

    def test_a_collapsed_section_hides_what_is_in_it(self, desktop: SlicerDesktop):
        import ctk
        import qt

        section = ctk.ctkCollapsibleButton("Options")
        layout = qt.QVBoxLayout(section)
        label = qt.QLabel("inside")
        layout.addWidget(label)
        told: list[bool] = []
        section.connect("contentsCollapsed(bool)", told.append)
        section.show()
        assert label.isVisible()
        section.collapsed = True
        assert not label.isVisible()
        assert (section.text, told) == ("Options", [True])
        section.delete()

    def test_settings_are_the_desktops_own(self, desktop: SlicerDesktop):
        settings = QtCore.QSettings()
        settings.setValue("x", 1)
        settings.sync()
        assert Path(settings.fileName()).is_relative_to(desktop.application.folder)
